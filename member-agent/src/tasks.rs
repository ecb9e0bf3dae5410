//! The agent's loops. None of them ever ends; if one does, the process must not go on as if it hadn't.

use tokio::task::JoinSet;

/// Loops that run until the process ends.
#[derive(Default)]
pub(crate) struct Tasks(JoinSet<&'static str>);

impl Tasks {
    /// Starts a loop.
    pub(crate) fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits until a loop ended or panicked, which is always a failure.
    pub(crate) async fn failed(mut self) -> anyhow::Error {
        match self.0.join_next().await {
            Some(Ok(name)) => anyhow::anyhow!("the loop `{name}` ended"),
            Some(Err(panic)) => anyhow::anyhow!("a loop broke: {panic}"),
            None => anyhow::anyhow!("no loop is running"),
        }
    }
}
