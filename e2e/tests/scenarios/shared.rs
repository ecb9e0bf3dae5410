//! The stage that all scenarios share.

use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use spillway_e2e::federation::{Federation, Shape};
use spillway_e2e::{Need, Provider};
use tokio::runtime::Runtime;

/// A story, and the stage it needs.
pub(crate) struct Scenario {
    /// `group::name`.
    pub(crate) name: String,
    /// What not every provider can do for it.
    pub(crate) needs: &'static [Need],
    /// The story.
    pub(crate) story: Story,
}

/// What a story is told to.
pub(crate) enum Story {
    /// The federation of that shape, which all these share.
    Federation(Shape, for<'a> fn(&'a Federation) -> BoxFuture<'a, Result<()>>),
    /// Clusters that it brings up and takes down itself.
    Alone(fn() -> BoxFuture<'static, Result<()>>),
}

impl Scenario {
    /// Why the provider can't do what it needs; `None` where it can.
    pub(crate) fn lacking(&self, provider: Provider) -> Option<&'static str> {
        self.needs.iter().find_map(|need| provider.lacks(*need))
    }

    /// The same, needing this as well.
    pub(crate) fn needing(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }
}

/// Makes the list entry of a scenario that is an `async fn(&Federation) -> Result<()>` (on the standard federation, or
/// with `on SHAPE` on another), or, with `alone`, an `async fn() -> Result<()>`. What not every provider can do for it
/// is added with [`Scenario::needing`].
macro_rules! scenario {
    ($group:literal, $module:ident :: $name:ident) => {
        crate::shared::scenario!($group, on Standard $module::$name)
    };
    ($group:literal, on $shape:ident $module:ident :: $name:ident) => {
        crate::shared::Scenario {
            name: concat!($group, "::", stringify!($name)).to_owned(),
            needs: &[],
            story: crate::shared::Story::Federation(
                spillway_e2e::federation::Shape::$shape,
                |federation| Box::pin($module::$name(federation)),
            ),
        }
    };
    ($group:literal, alone $module:ident :: $name:ident) => {
        crate::shared::Scenario {
            name: concat!($group, "::", stringify!($name)).to_owned(),
            needs: &[],
            story: crate::shared::Story::Alone(|| Box::pin($module::$name())),
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

    /// Runs a scenario. Where it is told to the federation, that comes up first if it isn't, and on failure
    /// what the clusters and nodes looked like is written down.
    pub(crate) fn run(&self, scenario: &Scenario) -> Result<()> {
        match scenario.story {
            Story::Federation(shape, story) => self.with_federation(&scenario.name, shape, story),
            Story::Alone(story) => self.runtime.block_on(timed(&scenario.name, story())),
        }
    }

    fn with_federation(
        &self,
        name: &str,
        shape: Shape,
        story: for<'a> fn(&'a Federation) -> BoxFuture<'a, Result<()>>,
    ) -> Result<()> {
        let mut guard = self.federation.lock().expect("scenarios run one after the other");
        self.runtime.block_on(async {
            // One at a time: two would want twice the memory.
            if let Some(other) = guard.take_if(|federation| federation.shape() != shape) {
                other.down().await.context("taking the last federation down")?;
            }
            if guard.is_none() {
                *guard = Some(
                    Federation::up_as(shape, "e2e")
                        .await
                        .context("bringing the federation up")?,
                );
            }
            let federation = guard.as_ref().expect("just made");
            let outcome = timed(name, story(federation)).await;
            if outcome.is_err() {
                federation.diagnose(name).await;
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

/// Runs a story and says how long it took.
async fn timed(name: &str, story: impl Future<Output = Result<()>>) -> Result<()> {
    let begin = Instant::now();
    let outcome = story.await;
    eprintln!("    {name} took {:.1} s", begin.elapsed().as_secs_f64());
    outcome
}
