//! The hub's CAs and name, kept in a Secret, and what everybody may know of them, in a ConfigMap.
//!
//! While one CA follows another ([`crate::rotation`]), the Secret holds two: `next.*` isn't used for signing yet,
//! `previous.crt` no longer.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use spillway_link::pki::{self, Authorities, CertificateAuthority};

use crate::api::{CALL_LIMIT, Failure, MANAGER, within};

/// Secret with the CAs.
pub(crate) const CA_SECRET: &str = "spillway-hub-ca";
/// ConfigMap for the command line.
pub(crate) const INFO: &str = "spillway-hub-info";
/// Wait between attempts while the API server is away.
const RETRY: Duration = Duration::from_secs(1);

/// How far one CA has followed another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// There is one.
    Steady,
    /// The next one is trusted, and doesn't sign yet.
    Distributing,
    /// The new one signs, the one before is still trusted.
    Retiring,
}

/// Who this hub is.
#[derive(Debug)]
pub(crate) struct HubIdentity {
    /// Name of the federation's hub, the same on every replica and for the federation's life.
    pub(crate) hub_id: String,
    /// Raised by whoever restores the hub from a backup.
    pub(crate) epoch: u64,
    /// The CAs.
    pub(crate) authorities: Authorities,
    /// How far one has followed another.
    pub(crate) phase: Phase,
    /// When the backup was made that the hub was restored from, if it was.
    pub(crate) restored_to: Option<Timestamp>,
}

/// Loads the hub's identity; the first replica ever makes it. Waits for the API server as long as it takes.
pub(crate) async fn identity(client: &Client, namespace: &str) -> anyhow::Result<HubIdentity> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    loop {
        let secret = match load_or_create(&api).await {
            Ok(secret) => secret,
            Err(error) if is_final(&error) => {
                return Err(error).context(format!("Secret {namespace}/{CA_SECRET}"));
            }
            Err(error) => {
                tracing::warn!(%error, "the CA can't be loaded; trying again");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        return read(&secret).with_context(|| {
            format!("Secret {namespace}/{CA_SECRET} can't be used; restore it from a backup (without it every member has to join again)")
        });
    }
}

/// Rights that are missing stay missing; somebody must be told.
fn is_final(error: &Failure) -> bool {
    matches!(error, Failure::Kube(kube::Error::Api(s)) if s.code == 403)
}

async fn load_or_create(api: &Api<Secret>) -> Result<Secret, Failure> {
    if let Some(secret) = within(CALL_LIMIT, api.get_opt(CA_SECRET)).await? {
        return Ok(secret);
    }
    let hub_id = hex::encode(rand::random::<[u8; 8]>());
    let Ok(authority) = CertificateAuthority::generate(&hub_id) else {
        return within(CALL_LIMIT, api.get(CA_SECRET)).await;
    };
    let data = [
        ("hub_id", hub_id.as_str()),
        ("epoch", "1"),
        ("ca.crt", authority.certificate_pem()),
        ("ca.key", authority.key_pem().expose()),
    ];
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(CA_SECRET.into()),
            ..ObjectMeta::default()
        },
        string_data: Some(data.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect()),
        ..Secret::default()
    };
    // Creating is atomic: of several replicas that start at once one makes the CA, the others load it.
    match within(CALL_LIMIT, api.create(&PostParams::default(), &secret)).await {
        Ok(made) => {
            tracing::info!(hub_id, "made the federation's CA");
            Ok(made)
        }
        Err(error) if error.is_conflict() => within(CALL_LIMIT, api.get(CA_SECRET)).await,
        Err(error) => Err(error),
    }
}

/// Reads the Secret; the error names the field at fault.
pub(crate) fn read(secret: &Secret) -> anyhow::Result<HubIdentity> {
    let bytes = |name: &str| secret.data.as_ref().and_then(|d| d.get(name));
    let field = |name: &str| {
        let bytes = bytes(name).ok_or_else(|| anyhow!("it has no {name}"))?;
        String::from_utf8(bytes.0.clone()).map_err(|_| anyhow!("its {name} isn't text"))
    };
    let load = |certificate: &str, key: &str| -> anyhow::Result<CertificateAuthority> {
        CertificateAuthority::load(&field(certificate)?, &pki::Secret::new(field(key)?))
            .with_context(|| format!("its {certificate} and {key}"))
    };
    let signing = load("ca.crt", "ca.key")?;
    let (phase, besides) = if bytes("next.crt").is_some() {
        // It will have to sign one day; better to hear of it now.
        let next = load("next.crt", "next.key")?;
        (Phase::Distributing, Some(next.certificate_pem().to_owned()))
    } else if bytes("previous.crt").is_some() {
        (Phase::Retiring, Some(field("previous.crt")?))
    } else {
        (Phase::Steady, None)
    };
    let besides: Vec<_> = besides.iter().map(String::as_str).collect();
    Ok(HubIdentity {
        hub_id: field("hub_id")?.trim().to_owned(),
        epoch: field("epoch")?
            .trim()
            .parse()
            .context("its epoch isn't a number")?,
        authorities: Authorities::new(signing, &besides)?,
        phase,
        restored_to: bytes("restored_to")
            .map(|_| {
                field("restored_to")?
                    .trim()
                    .parse()
                    .context("its restored_to isn't an RFC 3339 time")
            })
            .transpose()?,
    })
}

/// Publishes what `spillway token create` puts into a join command.
pub(crate) async fn publish(
    client: &Client,
    namespace: &str,
    identity: &HubIdentity,
    endpoints: &[String],
) -> Result<(), Failure> {
    let data: BTreeMap<_, _> = [
        ("hub_id", identity.hub_id.clone()),
        ("epoch", identity.epoch.to_string()),
        ("endpoints", endpoints.join(",")),
        ("ca_pin", identity.authorities.signing().pin().to_string()),
        ("ca.crt", identity.authorities.bundle_pem().to_owned()),
    ]
    .into();
    let info = serde_json::json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": INFO},
        "data": data,
    });
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(MANAGER).force();
    within(CALL_LIMIT, api.patch(INFO, &params, &Patch::Apply(&info))).await?;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use k8s_openapi::ByteString;

    use super::*;

    /// A Secret with these fields.
    pub(crate) fn secret(fields: &[(&str, &str)]) -> Secret {
        Secret {
            data: Some(
                fields
                    .iter()
                    .map(|(k, v)| ((*k).into(), ByteString(v.as_bytes().to_vec())))
                    .collect(),
            ),
            ..Secret::default()
        }
    }

    #[test]
    fn an_identity_reads_back_and_names_what_is_missing() {
        let ca = CertificateAuthority::generate("h").expect("a CA");
        let whole = [
            ("hub_id", "h\n"),
            ("epoch", "3"),
            ("ca.crt", ca.certificate_pem()),
            ("ca.key", ca.key_pem().expose()),
        ];
        let identity = read(&secret(&whole)).expect("whole");
        assert_eq!((identity.hub_id.as_str(), identity.epoch), ("h", 3));
        assert_eq!(identity.authorities.signing().pin(), ca.pin());
        assert_eq!(identity.phase, Phase::Steady);
        for missing in 0..whole.len() {
            let mut part = whole.to_vec();
            let (name, _) = part.remove(missing);
            let error = read(&secret(&part)).expect_err("incomplete").to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
