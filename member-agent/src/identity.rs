//! The member's key and certificate, kept in a Secret of this cluster. The key never leaves it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{DeleteParams, ObjectMeta};
use kube::{Api, Client, ResourceExt as _};

use crate::api::{self, Failure};
use crate::backoff::Backoff;
use crate::uplink::{self, MemberIdentity};

/// Secret with the join token, written by `spillway join`.
pub(crate) const TOKEN_SECRET: &str = "spillway-join-token";
/// Its key.
const TOKEN_KEY: &str = "token";
/// Secret with the identity.
const IDENTITY_SECRET: &str = "spillway-member-identity";
/// Annotation on the identity: public id of the token that it was got with.
const TOKEN_ID: &str = "member.spillway.io/token-id";
/// Annotation on the identity: `spec.caPin` by which this cluster joined. The hub's CA may be another one since.
const JOINED_BY: &str = "member.spillway.io/joined-by-ca-pin";

/// An identity and how it was got.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// Key, certificate, CA.
    pub(crate) identity: MemberIdentity,
    /// Public id of the token used.
    pub(crate) token_id: String,
    /// Pin of the hub's CA by which this cluster joined.
    pub(crate) joined_by: String,
}

impl Stored {
    /// End of the certificate's life.
    pub(crate) fn expires(&self) -> Option<SystemTime> {
        self.identity.certificate().ok().map(|c| c.not_after)
    }

    /// Checks that the identity is `member`'s, of the hub that `pin` was or is a CA's pin of; says what is wrong otherwise.
    /// Its time isn't looked at: the link renews a certificate that ended lately, and says so where it can't.
    pub(crate) fn check(&self, member: &str, pin: &str) -> Result<(), String> {
        let certificate = self
            .identity
            .check()
            .and_then(|()| self.identity.certificate())
            .map_err(|e| e.to_string())?;
        if certificate.member != member {
            return Err(format!(
                "the certificate is for member {}, not {member}",
                certificate.member
            ));
        }
        if self.joined_by != pin && !uplink::has_pin(&self.identity, pin) {
            return Err("the certificate is of another hub than spec.caPin says".into());
        }
        Ok(())
    }
}

/// The token in a Secret, if it holds one.
pub(crate) fn token_in(secret: &Secret) -> Option<String> {
    let bytes = &secret.data.as_ref()?.get(TOKEN_KEY)?.0;
    String::from_utf8(bytes.clone()).ok()
}

fn read(secret: &Secret) -> Option<Stored> {
    let text = |key: &str| {
        let bytes = &secret.data.as_ref()?.get(key)?.0;
        String::from_utf8(bytes.clone()).ok()
    };
    let identity = MemberIdentity {
        key_pem: uplink::Secret::new(text("tls.key")?),
        chain_pem: text("tls.crt")?,
        ca_pem: text("ca.crt")?,
    };
    let annotation = |name: &str| secret.annotations().get(name).cloned().unwrap_or_default();
    Some(Stored {
        identity,
        token_id: annotation(TOKEN_ID),
        joined_by: annotation(JOINED_BY),
    })
}

fn secret(stored: &Stored) -> Secret {
    let entry = |key: &str, value: &str| (key.to_owned(), ByteString(value.as_bytes().to_vec()));
    Secret {
        metadata: ObjectMeta {
            name: Some(IDENTITY_SECRET.into()),
            annotations: Some(BTreeMap::from([
                (TOKEN_ID.to_owned(), stored.token_id.clone()),
                (JOINED_BY.to_owned(), stored.joined_by.clone()),
            ])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([
            entry("tls.key", stored.identity.key_pem.expose()),
            entry("tls.crt", &stored.identity.chain_pem),
            entry("ca.crt", &stored.identity.ca_pem),
        ])),
        type_: Some("Opaque".into()),
        ..Secret::default()
    }
}

/// Reads and writes the Secrets.
#[derive(Clone)]
pub(crate) struct IdentityStore {
    api: Api<Secret>,
}

impl IdentityStore {
    /// Secrets of `namespace`.
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
        }
    }

    /// The identity; waits for the API server as long as it takes. A Secret that isn't complete is none.
    pub(crate) async fn load(&self) -> Option<Stored> {
        let mut backoff = Backoff::up_to(Duration::from_secs(5));
        loop {
            match api::call("reading the member's identity", self.api.get_opt(IDENTITY_SECRET)).await {
                Ok(None) => return None,
                Ok(Some(secret)) => {
                    let stored = read(&secret);
                    if stored.is_none() {
                        tracing::error!(
                            secret = IDENTITY_SECRET,
                            "the Secret lacks tls.key, tls.crt or ca.crt; a new join token is needed"
                        );
                    }
                    return stored;
                }
                Err(error) => tracing::warn!(%error, "trying again"),
            }
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// Stores the identity.
    pub(crate) async fn save(&self, stored: &Stored) -> Result<(), Failure> {
        let secret = secret(stored);
        api::apply(
            &self.api,
            "storing the member's identity",
            IDENTITY_SECRET,
            &secret,
        )
        .await
        .map(drop)
    }

    /// Stores the identity however long it takes: without it the one-time token would be lost.
    pub(crate) async fn save_surely(&self, stored: &Stored) {
        let mut backoff = Backoff::up_to(Duration::from_secs(5));
        while let Err(error) = self.save(stored).await {
            tracing::error!(%error, "the identity just got can't be stored; trying again");
            tokio::time::sleep(backoff.wait()).await;
        }
    }

    /// Deletes the identity.
    pub(crate) async fn delete(&self) -> Result<(), Failure> {
        let params = DeleteParams::default();
        api::call_delete(
            "deleting the member's identity",
            self.api.delete(IDENTITY_SECRET, &params),
        )
        .await
    }

    /// Deletes the join token.
    pub(crate) async fn delete_token(&self) -> Result<(), Failure> {
        let params = DeleteParams::default();
        api::call_delete("deleting the join token", self.api.delete(TOKEN_SECRET, &params)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> Stored {
        Stored {
            identity: MemberIdentity {
                key_pem: uplink::Secret::new("KEY"),
                chain_pem: "CHAIN".into(),
                ca_pem: "CA".into(),
            },
            token_id: "id".into(),
            joined_by: "pin".into(),
        }
    }

    #[test]
    fn a_secret_gives_back_what_was_put_in() {
        let back = read(&secret(&stored())).expect("complete");
        assert_eq!(back.identity, stored().identity);
        assert_eq!((back.token_id.as_str(), back.joined_by.as_str()), ("id", "pin"));
    }

    #[test]
    fn an_incomplete_secret_is_no_identity() {
        let mut secret = secret(&stored());
        secret.data.as_mut().expect("set").remove("tls.crt");
        assert!(read(&secret).is_none());
    }

    #[test]
    fn the_key_never_shows() {
        assert!(!format!("{:?}", stored()).contains("KEY"));
    }

    #[test]
    fn a_broken_identity_is_unusable() {
        assert!(stored().check("m", "sha256:00").is_err());
    }
}
