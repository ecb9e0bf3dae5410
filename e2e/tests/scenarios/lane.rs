//! Lanes: which scenarios wait for each other, and which run side by side.
//!
//! Scenarios mostly wait for Kubernetes. Those of a lane run one after the other in the order of the list, on one
//! federation after the other; what happens in one lane is of no account in another, since arenas share nothing but the
//! machine.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use spillway_e2e::Provider;
use spillway_e2e::federation::{Federation, Shape};
use tokio::runtime::Runtime;

use crate::shared::{Scenario, Story};

/// Memory that a federation's clusters take, in KiB, with room for what scenarios start in them.
const OF_A_FEDERATION: u64 = 6 << 20;

/// Lanes of one run. They live as long as the process.
pub(crate) struct Lanes(Vec<Lane>);

/// A place in a lane: whose turn it is.
pub(crate) struct Turn {
    lane: &'static Lane,
    number: usize,
    last: bool,
}

struct Lane {
    runtime: Runtime,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// Scenarios that have had their turn.
    done: usize,
    federation: Option<Federation>,
}

impl Lanes {
    /// Two where this machine can bear two federations at once, and the caller doesn't want one thread.
    ///
    /// Faults and their repair are watched by the millisecond: where processors are short, two lanes are no faster than
    /// one, and connections meet waits that no gateway is to blame for.
    pub(crate) fn leaked(provider: Provider, threads: Option<usize>) -> &'static Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let enough = processors >= 4 && memory() >= 2 * OF_A_FEDERATION;
        // kind's clusters want several times the disk, and a Docker of their own each.
        let two = enough && !provider.is_kind() && threads.is_none_or(|n| n > 1);
        let lanes = (0..if two { 2 } else { 1 }).map(|_| Lane::new()).collect();
        Box::leak(Box::new(Self(lanes)))
    }

    /// A turn for each of `scenarios`, in their order.
    pub(crate) fn turns(&'static self, scenarios: &[Scenario]) -> Vec<Turn> {
        let mut numbers = vec![0; self.0.len()];
        let mut turns: Vec<Turn> = scenarios
            .iter()
            .map(|scenario| {
                let lane = scenario.lane() % self.0.len();
                let number = numbers[lane];
                numbers[lane] += 1;
                Turn {
                    lane: &self.0[lane],
                    number,
                    last: false,
                }
            })
            .collect();
        for lane in &self.0 {
            let last = turns.iter_mut().rev().find(|turn| std::ptr::eq(turn.lane, lane));
            if let Some(turn) = last {
                turn.last = true;
            }
        }
        turns
    }
}

impl Lane {
    fn new() -> Self {
        Self {
            runtime: Runtime::new().expect("a tokio runtime"),
            state: Mutex::default(),
            moved: Condvar::new(),
        }
    }

    fn with_federation(
        &self,
        state: &mut State,
        name: &str,
        shape: Shape,
        story: for<'a> fn(&'a Federation) -> BoxFuture<'a, Result<()>>,
    ) -> Result<()> {
        self.runtime.block_on(async {
            if let Some(other) = state.federation.take_if(|f| f.shape() != shape) {
                other.down().await.context("taking the last federation down")?;
            }
            if state.federation.is_none() {
                let made = Federation::up_as(shape, "e2e").await;
                state.federation = Some(made.context("bringing the federation up")?);
            }
            let federation = state.federation.as_ref().expect("just made");
            let outcome = timed(name, story(federation)).await;
            if outcome.is_err() {
                federation.diagnose(name).await;
            }
            outcome
        })
    }
}

impl Turn {
    /// Waits for its turn and runs a scenario. Where that is told to a federation, the federation comes up first if it
    /// isn't; on failure what the clusters and nodes looked like is written down. After a lane's last scenario its
    /// federation goes down.
    pub(crate) fn run(&self, scenario: &Scenario) -> Result<()> {
        // Whatever a story's panic left behind, the next one finds out by itself.
        let state = self.lane.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.lane.moved.wait_while(state, |s| s.done != self.number);
        let mut held = Held {
            state: state.unwrap_or_else(PoisonError::into_inner),
            moved: &self.lane.moved,
        };
        let outcome = match scenario.story {
            Story::Federation(shape, story) => {
                self.lane
                    .with_federation(&mut held.state, &scenario.name, shape, story)
            }
            Story::Alone(story) => self.lane.runtime.block_on(timed(&scenario.name, story())),
        };
        let down = match held.state.federation.take_if(|_| self.last) {
            Some(federation) => self.lane.runtime.block_on(federation.down()),
            None => Ok(()),
        };
        outcome.and(down.context("taking the federation down"))
    }
}

/// A turn that is being taken. The next has its own whatever becomes of this one.
struct Held<'a> {
    state: MutexGuard<'a, State>,
    moved: &'a Condvar,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.state.done += 1;
        self.moved.notify_all();
    }
}

/// Runs a story and says how long it took.
async fn timed(name: &str, story: impl Future<Output = Result<()>>) -> Result<()> {
    let begin = Instant::now();
    let outcome = story.await;
    eprintln!("    {name} took {:.1} s", begin.elapsed().as_secs_f64());
    outcome
}

/// Memory that programs can have, in KiB (proc_meminfo(5)).
fn memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    line.and_then(|l| l.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}
