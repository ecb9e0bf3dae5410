//! The stage that all scenarios share.

use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use spillway_e2e::federation::Federation;
use tokio::runtime::Runtime;

/// A story told to a federation.
pub(crate) struct Scenario {
    /// `group::name`.
    pub(crate) name: String,
    /// The story.
    pub(crate) run: for<'a> fn(&'a Federation) -> BoxFuture<'a, Result<()>>,
}

/// Makes the list entry of a scenario that is an `async fn(&Federation) -> Result<()>`.
macro_rules! scenario {
    ($group:literal, $module:ident :: $name:ident) => {
        crate::shared::Scenario {
            name: concat!($group, "::", stringify!($name)).to_owned(),
            run: |federation| Box::pin($module::$name(federation)),
        }
    };
}
pub(crate) use scenario;

/// The federation and the runtime it lives on.
pub(crate) struct Stage {
    runtime: Runtime,
    federation: Mutex<Option<Federation>>,
}

impl Stage {
    /// A stage for the life of the process.
    pub(crate) fn leaked() -> &'static Self {
        let runtime = Runtime::new().expect("a tokio runtime");
        Box::leak(Box::new(Self {
            runtime,
            federation: Mutex::new(None),
        }))
    }

    /// Runs a scenario; brings the federation up if it is the first. On failure writes down what the
    /// clusters and nodes looked like.
    pub(crate) fn run(&self, scenario: &Scenario) -> Result<()> {
        let mut guard = self.federation.lock().expect("scenarios run one after the other");
        self.runtime.block_on(async {
            if guard.is_none() {
                *guard = Some(
                    Federation::up("e2e")
                        .await
                        .context("bringing the federation up")?,
                );
            }
            let federation = guard.as_ref().expect("just made");
            let begin = Instant::now();
            let outcome = (scenario.run)(federation).await;
            eprintln!(
                "    {} took {:.1} s",
                scenario.name,
                begin.elapsed().as_secs_f64()
            );
            if outcome.is_err() {
                federation.diagnose(&scenario.name).await;
            }
            outcome
        })
    }

    /// Takes the federation down, and everything it stood on.
    pub(crate) fn down(&self) -> Result<()> {
        let federation = self.federation.lock().expect("no scenario runs any more").take();
        match federation {
            Some(federation) => self.runtime.block_on(federation.down()),
            None => Ok(()),
        }
    }
}
