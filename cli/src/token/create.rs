//! `spillway token create`.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use serde::Serialize;
use spillway_crds::hub::Member;
use spillway_link::pki::Token;

use super::record;
use crate::FIELD_MANAGER;
use crate::args::{Target, TokenCreate};
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};
use crate::hub::endpoints;
use crate::output;
use crate::ui::Ui;

/// Everything that a cluster needs to join.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Invitation {
    /// Name of the member.
    pub member: String,
    /// Where it reaches the hub.
    pub endpoints: Vec<String>,
    /// Pin of the hub's CA.
    pub pin: String,
    /// The secret. Shown once.
    pub token: String,
    /// End of the token's life, RFC 3339.
    pub expires: String,
    /// Further flags, where the hub doesn't run from the default images.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
}

impl Invitation {
    /// The command to paste. The token goes through the environment, which other users can't read,
    /// unlike arguments.
    pub fn command(&self) -> String {
        let mut command = format!("SPILLWAY_TOKEN={} spillway join {}", self.token, self.member);
        for endpoint in &self.endpoints {
            command.push_str(" --endpoint ");
            command.push_str(&quoted(endpoint));
        }
        command.push_str(" --ca-pin ");
        command.push_str(&self.pin);
        for flag in &self.flags {
            command.push(' ');
            command.push_str(&quoted(flag));
        }
        command
    }
}

/// Brackets of IPv6 addresses are patterns to a shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:/=@".contains(c);
    if word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{word}'")
    }
}

/// Makes a token and prints the join command.
pub async fn run(target: &Target, create: TokenCreate, ui: &Ui) -> Result<(), Failure> {
    let cluster = Cluster::connect(target).await?;
    let Some(hub) = cluster.hub_info().await? else {
        return Err(
            Failure::new(Exit::NotFound, format!("no hub has started in {}", cluster.name))
                .fix("install one and wait for it: spillway hub install --wait")
                .fix("or name the hub's cluster with --kubeconfig or --context"),
        );
    };
    if !create.rejoin && taken(&cluster, &create.name).await? {
        let name = &create.name;
        ui.warn(format!(
            "a cluster has joined as {name}: the token works only once that one has left, or with --rejoin"
        ));
    }
    let endpoints = if !create.endpoints.is_empty() {
        create.endpoints.iter().map(ToString::to_string).collect()
    } else if !hub.endpoints.is_empty() {
        hub.endpoints
    } else {
        endpoints::discover(&cluster).await?
    };
    let token = Token::generate();
    let expires = expiry(&create)?;
    let secret: Secret = record::secret(&token, &create, expires)?;
    let parameters = PostParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PostParams::default()
    };
    cluster
        .ours::<Secret>()
        .create(&parameters, &secret)
        .await
        .map_err(|err| Failure::kube("storing the token's hash", &err))?;
    let invitation = Invitation {
        member: create.name.clone(),
        endpoints,
        pin: hub.pin,
        token: token.expose().to_owned(),
        expires: expires.to_string(),
        flags: image_flags(&cluster).await?,
    };
    if let Some(format) = create.output {
        return output::print(&output::text(&invitation, format)?);
    }
    ui.say(format!(
        "run this against the cluster that joins, before {expires}; it works once:"
    ));
    output::print(&format!("{}\n", invitation.command()))
}

fn expiry(create: &TokenCreate) -> Result<Timestamp, Failure> {
    let now = Timestamp::from_second(Timestamp::now().as_second());
    now.and_then(|now| now.checked_add(create.ttl))
        .map_err(|err| Failure::new(Exit::Usage, format!("--ttl: {err}")))
}

/// Whether a cluster has joined under the name: better said now than in the middle of a join.
async fn taken(cluster: &Cluster, name: &str) -> Result<bool, Failure> {
    let member = cluster
        .get(Api::<Member>::all(cluster.client.clone()), name, "member")
        .await?;
    Ok(member
        .and_then(|m| m.status)
        .is_some_and(|s| s.certificate_serial.is_some()))
}

/// The member's images come from where the hub's came from, with the same tag.
async fn image_flags(cluster: &Cluster) -> Result<Vec<String>, Failure> {
    let deployment: Option<Deployment> = cluster.get(cluster.ours(), "spillway-hub", "Deployment").await?;
    let image = deployment
        .and_then(|d| d.spec)
        .and_then(|s| s.template.spec)
        .and_then(|s| s.containers.into_iter().next())
        .and_then(|c| c.image)
        .unwrap_or_default();
    Ok(flags_for(&image))
}

/// Flags by which a member gets its images from where `image`, the hub's, is.
fn flags_for(image: &str) -> Vec<String> {
    let Some((registry, tag)) = image
        .rsplit_once(':')
        .and_then(|(path, tag)| Some((path.strip_suffix("/hub")?, tag)))
    else {
        return Vec::new();
    };
    let mut flags = Vec::new();
    if registry != "docker.io/spillway" {
        flags.push(format!("--image-registry={registry}"));
    }
    if tag != env!("CARGO_PKG_VERSION") {
        flags.push(format!("--image-tag={tag}"));
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invitation() -> Invitation {
        Invitation {
            member: "fra-1".into(),
            endpoints: vec!["192.0.2.1:30943".into(), "[2001:db8::1]:30943".into()],
            pin: format!("sha256:{}", "ab".repeat(32)),
            token: "spw1.id.secret".into(),
            expires: "2026-01-01T00:00:00Z".into(),
            flags: vec!["--image-tag=dev".into()],
        }
    }

    #[test]
    fn the_command_is_one_line_and_keeps_the_token_out_of_the_arguments() {
        insta::assert_snapshot!(invitation().command(), @"SPILLWAY_TOKEN=spw1.id.secret spillway join fra-1 --endpoint 192.0.2.1:30943 --endpoint '[2001:db8::1]:30943' --ca-pin sha256:abababababababababababababababababababababababababababababababab --image-tag=dev");
    }

    #[test]
    fn the_command_parses() {
        use clap::Parser as _;
        let command = invitation().command();
        let words = command.split(' ').skip(1).map(|word| word.trim_matches('\''));
        let parsed = crate::args::Arguments::try_parse_from(words).expect("parses");
        let crate::args::Command::Join(join) = parsed.command else {
            panic!("not a join");
        };
        assert_eq!((join.name.as_str(), join.endpoints.len()), ("fra-1", 2));
        assert_eq!(join.image.image_tag.as_deref(), Some("dev"));
    }

    #[test]
    fn members_use_the_hubs_images() {
        assert!(flags_for(concat!("docker.io/spillway/hub:", env!("CARGO_PKG_VERSION"))).is_empty());
        assert_eq!(flags_for("docker.io/spillway/hub:dev"), ["--image-tag=dev"]);
        assert_eq!(
            flags_for(concat!("r.example.org:5000/x/hub:", env!("CARGO_PKG_VERSION"))),
            ["--image-registry=r.example.org:5000/x"]
        );
        assert!(flags_for("custom@sha256:0").is_empty());
    }
}
