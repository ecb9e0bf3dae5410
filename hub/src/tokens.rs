//! Old join tokens go. For a while they stay, so that whoever uses one again hears what is wrong with it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};

use crate::api::{CALL_LIMIT, Failure, within};
use crate::enroll::{Record, TOKEN_LABEL};
use crate::lease::Leadership;

/// Time between two looks.
const INTERVAL: Duration = Duration::from_secs(600);
/// How long a token stays after it was used or has expired.
const KEEP: SignedDuration = SignedDuration::from_hours(24);

/// Removes tokens while this replica leads.
pub(crate) struct Tokens {
    api: Api<Secret>,
    leadership: Leadership,
}

impl Tokens {
    pub(crate) fn new(client: &Client, namespace: &str, leadership: Leadership) -> Self {
        Self {
            api: Api::namespaced(client.clone(), namespace),
            leadership,
        }
    }

    /// Runs for ever.
    pub(crate) async fn run(mut self) {
        loop {
            self.leadership.gained().await;
            if let Err(error) = self.look().await {
                tracing::warn!(%error, "old join tokens can't be removed; trying again later");
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }

    async fn look(&self) -> Result<(), Failure> {
        let params = ListParams::default().labels(&format!("{TOKEN_LABEL}=true"));
        let secrets = within(CALL_LIMIT, self.api.list(&params)).await?;
        for secret in secrets.iter().filter(|s| is_old(s, Timestamp::now())) {
            let name = secret.name_any();
            // Exactly what was looked at.
            let params = DeleteParams::default().preconditions(Preconditions {
                uid: secret.metadata.uid.clone(),
                resource_version: secret.metadata.resource_version.clone(),
            });
            match within(self.leadership.limit()?, self.api.delete(&name, &params)).await {
                Ok(_) => tracing::info!(secret = name, "old join token removed"),
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// What can't be read is left to whoever made it.
fn is_old(secret: &Secret, now: Timestamp) -> bool {
    Record::read(secret).is_ok_and(|r| now.duration_since(r.over_since()) > KEEP)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use spillway_core::plan::Digest;

    use super::*;

    fn token(used: Option<&str>) -> Secret {
        let hash = Digest::of(b"t").to_string();
        let fields = [
            ("hash", Some(hash.as_str())),
            ("member", Some("a")),
            ("expires", Some("2030-01-03T00:00:00Z")),
            ("used", used),
        ];
        Secret {
            data: Some(
                fields
                    .into_iter()
                    .filter_map(|(k, v)| Some((k.to_owned(), ByteString(v?.as_bytes().to_vec()))))
                    .collect(),
            ),
            ..Secret::default()
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn a_token_stays_for_a_day_after_its_use_or_its_end() {
        let fresh = token(None);
        assert!(!is_old(&fresh, at("2030-01-02T23:00:00Z")), "still good");
        assert!(
            !is_old(&fresh, at("2030-01-03T23:00:00Z")),
            "says that it expired"
        );
        assert!(is_old(&fresh, at("2030-01-04T00:00:01Z")));
        let used = token(Some("2030-01-01T00:00:00Z"));
        assert!(
            !is_old(&used, at("2030-01-01T23:00:00Z")),
            "says that it was used"
        );
        assert!(is_old(&used, at("2030-01-02T00:00:01Z")));
        assert!(!is_old(&Secret::default(), at("2040-01-01T00:00:00Z")));
    }
}
