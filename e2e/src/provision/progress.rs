//! Progress of long work: a bar on a terminal, a plain line now and then elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a plain line appears where nobody watches.
const PLAIN_EVERY: Duration = Duration::from_secs(15);

/// Says a sentence about provisioning on standard error.
pub(crate) fn say(line: &str) {
    eprintln!("toolbox: {line}");
}

/// The progress of one piece of work. Counts what is done against an upper bound.
pub(crate) struct Progress {
    what: String,
    started: Instant,
    done: u64,
    at_most: u64,
    face: Face,
}

enum Face {
    Bar(ProgressBar),
    Plain { last: Instant },
}

impl Progress {
    /// Starts showing `what`. `at_most` is an upper bound of the steps: those already done by an earlier run are skipped.
    pub(crate) fn start(what: &str, at_most: u64) -> Self {
        let started = Instant::now();
        let face = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(at_most);
            if let Ok(style) = ProgressStyle::with_template(
                "{spinner} {prefix} [{elapsed}] {bar:28} {pos}/{len} {wide_msg:.dim}",
            ) {
                bar.set_style(style);
            }
            bar.set_prefix(what.to_owned());
            bar.enable_steady_tick(Duration::from_millis(200));
            Face::Bar(bar)
        } else {
            say(&format!("{what} …"));
            Face::Plain { last: started }
        };
        Self {
            what: what.to_owned(),
            started,
            done: 0,
            at_most,
            face,
        }
    }

    /// Counts one step and shows its name.
    pub(crate) fn step(&mut self, message: &str) {
        self.done += 1;
        if let Face::Bar(bar) = &self.face {
            bar.inc(1);
        }
        self.show(message);
    }

    /// Shows what goes on without counting it. Call it also when nothing happened, so that plain lines keep coming.
    pub(crate) fn show(&mut self, message: &str) {
        match &mut self.face {
            Face::Bar(bar) => bar.set_message(message.to_owned()),
            Face::Plain { last } => {
                if last.elapsed() >= PLAIN_EVERY {
                    *last = Instant::now();
                    let elapsed = human(self.started.elapsed());
                    let count = match self.at_most {
                        // Nobody counts.
                        0 => String::new(),
                        at_most => format!(", {} of at most {at_most}", self.done),
                    };
                    say(&format!("{}: {elapsed}{count}: {message}", self.what));
                }
            }
        }
    }

    /// Ends with a line that says how long it took.
    pub(crate) fn finish(self) {
        let elapsed = human(self.started.elapsed());
        self.clear();
        say(&format!("{} took {elapsed}", self.what));
    }

    /// Ends without a word: the caller reports the failure.
    pub(crate) fn abandon(self) {
        self.clear();
    }

    fn clear(&self) {
        if let Face::Bar(bar) = &self.face {
            bar.finish_and_clear();
        }
    }
}

/// A duration as people say it: `42 s`, `3 min 07 s`.
pub(crate) fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds < 60 {
        format!("{seconds} s")
    } else {
        format!("{} min {:02} s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_naturally() {
        assert_eq!(human(Duration::from_millis(900)), "0 s");
        assert_eq!(human(Duration::from_secs(59)), "59 s");
        assert_eq!(human(Duration::from_secs(187)), "3 min 07 s");
    }
}
