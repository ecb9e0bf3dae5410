//! `spillway migrate`: other products' objects in Spillway's words. Reads, prints, changes nothing.

mod convert;
mod net;
#[cfg(test)]
mod tests;
mod theirs;

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use serde_json::Value;
use spillway_crds::LabelSelector;

pub use convert::{Migrated, Options, convert};

use crate::args::{MigrateEgressGateway, Target};
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::ui::Ui;

/// `spillway migrate egressgateway`.
pub async fn egressgateway(target: &Target, args: &MigrateEgressGateway, ui: &Ui) -> Result<(), Failure> {
    let objects = if args.files.is_empty() {
        from_cluster(target).await?
    } else {
        from_files(&args.files)?
    };
    let options = Options {
        member: args.member.clone(),
        members: LabelSelector {
            match_labels: args
                .member_labels
                .iter()
                .map(|l| (l.key.clone(), l.value.clone()))
                .collect(),
            match_expressions: Vec::new(),
        },
    };
    let migrated = convert(&objects, &options);
    if migrated.is_empty() {
        return Err(Failure::new(
            Exit::NotFound,
            format!(
                "there is no EgressGateway, EgressPolicy or EgressClusterPolicy of {}",
                theirs::GROUP
            ),
        )
        .fix("name the cluster that has them with --kubeconfig or --context, or files with --file"));
    }
    if options.members.is_everything() {
        ui.warn("the policies select pods in all members: --member-label KEY=VALUE narrows that");
    }
    for one in &migrated {
        for note in &one.notes {
            let what = if one.object.is_some() {
                ""
            } else {
                " is not migrated"
            };
            ui.warn(format!("{}{what}: {}", one_line(&one.from), one_line(note)));
        }
    }
    output::print(&stream(&migrated)?)
}

/// All of it as a YAML stream with the notes as comments.
fn stream(migrated: &[Migrated]) -> Result<String, Failure> {
    let mut out = String::new();
    for one in migrated {
        out.push_str("---\n");
        let _ = writeln!(out, "# From {} of {}", one_line(&one.from), theirs::GROUP);
        for note in &one.notes {
            let what = if one.object.is_some() {
                "Note"
            } else {
                "Not migrated"
            };
            let _ = writeln!(out, "# {what}: {}", one_line(note));
        }
        if let Some(object) = &one.object {
            out.push_str(&output::text(object, output::Format::Yaml)?);
        }
    }
    Ok(out)
}

/// Somebody else's text must not end a comment.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') {
                ' '
            } else {
                c
            }
        })
        .collect()
}

async fn from_cluster(target: &Target) -> Result<Vec<Value>, Failure> {
    let cluster = Cluster::connect(target).await?;
    let mut objects = Vec::new();
    for (kind, plural) in [
        ("EgressGateway", "egressgateways"),
        ("EgressPolicy", "egresspolicies"),
        ("EgressClusterPolicy", "egressclusterpolicies"),
    ] {
        let gvk = GroupVersionKind::gvk(theirs::GROUP, "v1beta1", kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
        let api = Api::<DynamicObject>::all_with(cluster.client.clone(), &resource);
        for object in cluster.list(api, plural).await? {
            let mut value = serde_json::to_value(&object)
                .map_err(|e| Failure::new(Exit::Other, format!("reading {plural}: {e}")))?;
            // Lists name the kind once for all.
            value["apiVersion"] = resource.api_version.clone().into();
            value["kind"] = kind.into();
            objects.push(value);
        }
    }
    if !objects.is_empty() {
        let namespaces = cluster
            .list(Api::<Namespace>::all(cluster.client.clone()), "namespaces")
            .await?;
        objects.extend(
            namespaces
                .into_iter()
                .filter_map(|n| serde_json::to_value(n).ok())
                .map(|mut n| {
                    n["kind"] = "Namespace".into();
                    n
                }),
        );
    }
    Ok(objects)
}

fn from_files(files: &[PathBuf]) -> Result<Vec<Value>, Failure> {
    let mut objects = Vec::new();
    for file in files {
        let text = text_of(file)
            .map_err(|e| Failure::new(Exit::Usage, format!("{} can't be read: {e}", file.display())))?;
        let found = parse(&text).map_err(|e| {
            Failure::new(
                Exit::Usage,
                format!("{} is neither YAML nor JSON: {e}", file.display()),
            )
        })?;
        objects.extend(found);
    }
    Ok(objects)
}

fn text_of(file: &Path) -> std::io::Result<String> {
    if file != Path::new("-") {
        return std::fs::read_to_string(file);
    }
    let mut text = String::new();
    std::io::stdin().lock().read_to_string(&mut text)?;
    Ok(text)
}

/// Objects of a YAML stream or a JSON document; lists are taken apart.
fn parse(text: &str) -> Result<Vec<Value>, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|e| e.to_string())?;
    let mut objects = Vec::new();
    for document in documents {
        match document.get("items").and_then(Value::as_array) {
            Some(items) if document["kind"].as_str().is_some_and(|k| k.ends_with("List")) => {
                objects.extend(items.iter().cloned());
            }
            _ => objects.push(document),
        }
    }
    Ok(objects)
}
