//! A token's Secret.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, ObjectMeta};
use serde::Serialize;
use spillway_crds::NAMESPACE;
use spillway_link::pki::Token;

use crate::args::TokenCreate;
use crate::cluster::Cluster;
use crate::failure::{Exit, Failure};

/// Marks the Secrets that hold tokens' hashes.
pub const LABEL: &str = "spillway.io/join-token";
/// Names the member on such a Secret.
pub const MEMBER_LABEL: &str = "spillway.io/member";

/// The Secret for a new token: its hash, and what the member will be.
pub fn secret(token: &Token, create: &TokenCreate, expires: Timestamp) -> Result<Secret, Failure> {
    let labels: BTreeMap<&str, &str> = create
        .labels
        .iter()
        .map(|l| (l.key.as_str(), l.value.as_str()))
        .collect();
    let labels = serde_json::to_string(&labels)
        .map_err(|err| Failure::new(Exit::Other, format!("can't write the labels: {err}")))?;
    let mut data = BTreeMap::from([
        ("hash".to_owned(), token.hash().to_string()),
        ("member".to_owned(), create.name.clone()),
        ("expires".to_owned(), expires.to_string()),
        ("labels".to_owned(), labels),
        ("partition".to_owned(), create.partition.clone()),
    ]);
    if create.rejoin {
        data.insert("rejoin".into(), "true".into());
    }
    Ok(Secret {
        metadata: ObjectMeta {
            name: Some(format!("spillway-token-{}", token.id())),
            namespace: Some(NAMESPACE.into()),
            labels: Some(BTreeMap::from([
                (LABEL.into(), "true".into()),
                (MEMBER_LABEL.into(), create.name.clone()),
                ("app.kubernetes.io/part-of".into(), "spillway".into()),
            ])),
            ..ObjectMeta::default()
        },
        string_data: Some(data),
        type_: Some("Opaque".into()),
        ..Secret::default()
    })
}

/// A token as `token list` shows it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Public part of the token.
    pub id: String,
    /// Member that it lets in.
    pub member: String,
    /// `Ready`, `Used` or `Expired`.
    pub state: &'static str,
    /// RFC 3339.
    pub expires: String,
    /// Labels that the member will get.
    pub labels: BTreeMap<String, String>,
    /// Partition of the member.
    pub partition: String,
    /// May take over a name.
    pub rejoin: bool,
}

impl Record {
    /// Reads a token's Secret at the time `now`.
    pub fn read(secret: &Secret, now: Timestamp) -> Self {
        let text = |key: &str| {
            secret
                .data
                .as_ref()
                .and_then(|data| data.get(key))
                .map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
                .unwrap_or_default()
        };
        let expires = text("expires");
        let state = if !text("used").is_empty() {
            "Used"
        } else if expires.parse::<Timestamp>().is_ok_and(|at| at > now) {
            "Ready"
        } else {
            "Expired"
        };
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        Self {
            id: name.strip_prefix("spillway-token-").unwrap_or(name).to_owned(),
            member: text("member"),
            state,
            expires,
            labels: serde_json::from_str(&text("labels")).unwrap_or_default(),
            partition: text("partition"),
            rejoin: text("rejoin") == "true",
        }
    }
}

/// All tokens, by member and time of expiry.
pub async fn all(cluster: &Cluster) -> Result<Vec<Record>, Failure> {
    let list = cluster
        .ours::<Secret>()
        .list(&ListParams::default().labels(&format!("{LABEL}=true")))
        .await
        .map_err(|err| Failure::kube("listing tokens", &err))?;
    let now = Timestamp::now();
    let mut records: Vec<Record> = list.items.iter().map(|s| Record::read(s, now)).collect();
    records.sort_by(|a, b| (&a.member, &a.expires).cmp(&(&b.member, &b.expires)));
    Ok(records)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    fn stored(mut secret: Secret, more: &[(&str, &str)]) -> Secret {
        let mut data: BTreeMap<String, String> = secret.string_data.take().unwrap_or_default();
        data.extend(more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        secret.data = Some(
            data.into_iter()
                .map(|(k, v)| (k, ByteString(v.into_bytes())))
                .collect(),
        );
        secret
    }

    #[test]
    fn the_record_has_the_hash_and_never_the_token() {
        let token = Token::generate();
        let create = TokenCreate {
            name: "fra-1".into(),
            labels: vec!["region=eu".parse().expect("a label")],
            partition: "default".into(),
            ttl: std::time::Duration::from_secs(60),
            rejoin: true,
            endpoints: Vec::new(),
            output: None,
        };
        let at = |s| Timestamp::from_second(s).expect("in range");
        let secret = secret(&token, &create, at(1_000)).expect("a secret");
        let all = serde_json::to_string(&secret).expect("JSON");
        assert!(all.contains(&token.hash().to_string()));
        assert!(!all.contains(token.expose().rsplit('.').next().expect("three parts")));
        let fresh = Record::read(&stored(secret.clone(), &[]), at(999));
        assert_eq!(
            (fresh.state, fresh.member.as_str(), fresh.rejoin),
            ("Ready", "fra-1", true)
        );
        assert_eq!(fresh.labels.get("region").map(String::as_str), Some("eu"));
        assert_eq!(fresh.id, token.id());
        assert_eq!(
            Record::read(&stored(secret.clone(), &[]), at(1_001)).state,
            "Expired"
        );
        assert_eq!(
            Record::read(&stored(secret, &[("used", "1970-01-01T00:00:01Z")]), at(1_001)).state,
            "Used"
        );
    }
}
