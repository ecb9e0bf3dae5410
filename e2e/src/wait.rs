//! Waiting for a condition, with an end.

use std::{future::Future, time::Duration};

use anyhow::{Result, anyhow};
use tokio::time::{Instant, sleep, timeout_at};

/// The first pause between two looks; it grows, so that long waits cost a busy machine little.
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// The longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Looks again and again until `look` succeeds, and gives what it returned.
///
/// `what` completes the sentence "waited in vain that …". After `timeout` the error holds the last one of `look`, or
/// says that a look never ended.
pub async fn eventually<T, F, Fut>(timeout: Duration, what: &str, mut look: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let deadline = Instant::now() + timeout;
    let mut pause = FIRST_PAUSE;
    let mut last = anyhow!("no look at it ended");
    loop {
        match timeout_at(deadline, look()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(e)) => last = e,
            Err(_) => return Err(last.context(format!("waited {timeout:?} in vain that {what}"))),
        }
        if Instant::now() + pause > deadline {
            return Err(last.context(format!("waited {timeout:?} in vain that {what}")));
        }
        sleep(pause).await;
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_error_is_told() {
        let mut n = 0;
        let result: Result<()> = eventually(Duration::from_millis(100), "it is so", || {
            n += 1;
            let n = n;
            async move { Err(anyhow!("look {n}")) }
        })
        .await;
        let text = format!("{:#}", result.expect_err("it never is"));
        assert!(text.contains("that it is so") && text.contains("look"), "{text}");
    }

    #[tokio::test]
    async fn a_look_that_hangs_ends_too() {
        let result: Result<()> =
            eventually(Duration::from_millis(50), "it answers", std::future::pending).await;
        assert!(result.is_err());
    }
}
