//! Calls to this cluster's API server: bounded in time, and sorted into what waiting mends and what it doesn't.

use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Config};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Field manager of everything that this agent applies.
pub(crate) const MANAGER: &str = "spillway-member-agent";

/// Longest time that one call may take.
const CALL_LIMIT: Duration = Duration::from_secs(10);

/// A call that didn't do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The API server looked at the request and said no; the same request will fail again.
    #[error("{what}: the API server refuses it ({code}): {message}")]
    Refused {
        /// What was being done, to which object.
        what: String,
        /// HTTP status.
        code: u16,
        /// The API server's words.
        message: String,
    },
    /// The API server is away, overloaded, or doesn't know the kind yet.
    #[error("{what}: {why}")]
    Away {
        /// What was being done, to which object.
        what: String,
        /// Why it didn't work.
        why: String,
    },
}

/// One line about a client error: its own text repeats the whole answer.
pub(crate) fn explain(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => {
            let mut text = other.to_string();
            let mut cause = std::error::Error::source(other);
            while let Some(inner) = cause {
                let inner_text = inner.to_string();
                if !text.contains(&inner_text) {
                    text = format!("{text}: {inner_text}");
                }
                cause = inner.source();
            }
            text
        }
    }
}

impl Failure {
    fn new(what: &str, error: kube::Error) -> Self {
        match error {
            // 403 belongs here: rights don't come back by waiting, and somebody must be told which are missing.
            kube::Error::Api(status) if matches!(status.code, 400 | 403 | 405 | 413 | 422) => Self::Refused {
                what: what.into(),
                code: status.code,
                message: status.message,
            },
            other => Self::Away {
                what: what.into(),
                why: explain(&other),
            },
        }
    }
}

/// A client whose connections to a vanished API server are noticed within half a minute.
pub(crate) async fn client() -> anyhow::Result<Client> {
    let mut config = Config::infer()
        .await
        .context("no way to the API server: neither a kubeconfig nor a service account is there")?;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(Duration::from_secs(30));
    config.write_timeout = Some(Duration::from_secs(30));
    config.reset_reader_on_write = true;
    // Every caller has a loop of its own that retries, with what is right by then.
    config.default_retry = false;
    Client::try_from(config).context("the API server's client can't be built")
}

/// Runs one call within its time limit. `what` says for the log what was being done.
pub(crate) async fn call<T>(
    what: &str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(CALL_LIMIT, request).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(Failure::new(what, error)),
        Err(_) => Err(Failure::Away {
            what: what.into(),
            why: format!("no answer within {} s", CALL_LIMIT.as_secs()),
        }),
    }
}

/// Like [`call`], for deletions: what is already gone is as good as deleted.
pub(crate) async fn call_delete<T>(
    what: &str,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<(), Failure> {
    call(what, async {
        match request.await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            other => other.map(drop),
        }
    })
    .await
}

/// Server-side apply in this agent's name.
pub(crate) async fn apply<K, P>(api: &Api<K>, what: &str, name: &str, object: &P) -> Result<K, Failure>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
    P: Serialize + std::fmt::Debug + Sync,
{
    let params = PatchParams::apply(MANAGER).force();
    call(what, api.patch(name, &params, &Patch::Apply(object))).await
}

/// Server-side apply of the `status` subresource in this agent's name.
pub(crate) async fn apply_status<K, P>(api: &Api<K>, what: &str, name: &str, object: &P) -> Result<K, Failure>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
    P: Serialize + std::fmt::Debug + Sync,
{
    let params = PatchParams::apply(MANAGER).force();
    call(what, api.patch_status(name, &params, &Patch::Apply(object))).await
}
