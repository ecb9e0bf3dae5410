//! `spillway join`: from a kubeconfig and the printed command to a member whose nodes all have the plan.

pub mod advice;
pub mod enrolment;
pub mod objects;
pub mod phases;
pub mod preflight;
mod progress;

use std::io::Read as _;

use spillway_link::pki::Token;
use tokio::time::Instant;

use crate::args::{Join, Target};
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::hub::install::{apply_all, objects_text};
use crate::output::{self, Format};
use crate::ui::Ui;
use crate::values::MemberValues;

/// Joins the cluster, telling each phase.
pub async fn run(target: &Target, join: Join, ui: &Ui) -> Result<(), Failure> {
    let mut objects = MemberValues::new(&join.image)?.render()?;
    let connection = objects::connection(&join);
    if join.dry_run {
        let cluster = Cluster::connect(target).await?;
        preflight::rights(&cluster, &preflight::all_of(&objects)).await?;
        objects.push(connection);
        return output::print(&objects_text(&objects, join.output.unwrap_or(Format::Yaml))?);
    }
    let token = token(&join)?;
    let cluster = Cluster::connect(target).await?;
    let release = match cluster.helm_release("spillway-member-agent").await {
        // The list of all rights that are missing says more than the first of them.
        Err(refused) if refused.exit == Exit::Rights => None,
        found => found?,
    };
    if release.is_some() {
        objects.clear();
    }
    preflight::rights(&cluster, &preflight::all_of(&objects)).await?;
    let before = preflight::not_joined(&cluster, &join).await?;

    let deadline = Instant::now() + join.timeout;
    match release {
        Some(release) => ui.say(format!(
            "the Helm release {release} has installed the agents: they are left as they are"
        )),
        None => apply_all(&cluster, &objects, deadline, ui).await?,
    }
    // The token first: an agent that sees the connection looks for it.
    cluster.apply(&objects::token_secret(&token)).await?;
    cluster.apply(&connection).await?;
    let since = enrolment::Since::applied(&cluster, before.as_ref()).await?;
    let joined = phases::follow(&cluster, &join, &since, deadline, ui).await?;
    if let Some(format) = join.output {
        return output::print(&output::text(&joined, format)?);
    }
    ui.say(format!(
        "{} is a member. See how it does: spillway status",
        join.name
    ));
    Ok(())
}

/// The token from the file, stdin, the environment or the argument, checked for its form only.
fn token(join: &Join) -> Result<Token, Failure> {
    let text = match (&join.token_file, &join.token) {
        (Some(path), _) if path.as_os_str() == "-" => {
            let mut text = String::new();
            std::io::stdin()
                .take(4_096)
                .read_to_string(&mut text)
                .map_err(|err| {
                    Failure::new(Exit::Usage, format!("can't read the token from stdin: {err}"))
                })?;
            text
        }
        (Some(path), _) => std::fs::read_to_string(path).map_err(|err| {
            Failure::new(
                Exit::Usage,
                format!("can't read the token from {}: {err}", path.display()),
            )
        })?,
        (None, Some(text)) => text.clone(),
        (None, None) => {
            return Err(Failure::new(Exit::Usage, "no token")
                .fix("paste the whole command that `spillway token create` printed; it starts with SPILLWAY_TOKEN=")
                .fix("or keep the token in a file and name it: --token-file FILE"));
        }
    };
    text.parse()
        .map_err(|err| Failure::new(Exit::Usage, format!("{err}")))
}

#[cfg(test)]
mod tests {
    use crate::args::Join;

    /// The command line of a join that is complete.
    pub(super) fn join() -> Join {
        use clap::Parser as _;
        let pin = format!("sha256:{}", "ab".repeat(32));
        let words = [
            "spillway",
            "join",
            "fra-1",
            "--endpoint",
            "hub:1",
            "--ca-pin",
            &pin,
        ];
        match crate::args::Arguments::try_parse_from(words)
            .expect("parses")
            .command
        {
            crate::args::Command::Join(join) => join,
            _ => panic!("not a join"),
        }
    }
}
