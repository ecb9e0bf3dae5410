//! What people see on stderr: phases with a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::failure::{Exit, Failure};

/// Writes to stderr; colours and spinners only where it is a terminal.
#[derive(Clone, Copy, Debug)]
pub struct Ui {
    terminal: bool,
    colour: bool,
}

#[derive(Clone, Copy)]
enum Colour {
    Red = 31,
    Green = 32,
    Yellow = 33,
}

impl Ui {
    /// Looks at stderr, `NO_COLOR` (any value) and `TERM`.
    pub fn for_terminal() -> Self {
        let dumb = std::env::var("TERM").is_ok_and(|term| term == "dumb");
        let terminal = std::io::stderr().is_terminal() && !dumb;
        Self {
            terminal,
            colour: terminal && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// A line of information.
    pub fn say(&self, line: impl AsRef<str>) {
        eprintln!("{}", line.as_ref());
    }

    /// A line about something that may need a hand.
    pub fn warn(&self, line: impl AsRef<str>) {
        eprintln!("{} {}", self.paint(Colour::Yellow, "warning:"), line.as_ref());
    }

    /// A failure and what to do about it.
    pub fn failure(&self, failure: &Failure) {
        eprintln!("{} {}", self.paint(Colour::Red, "error:"), failure.what);
        if !failure.fix.is_empty() {
            eprintln!("what to do:");
            for step in &failure.fix {
                eprintln!("  * {step}");
            }
        }
    }

    /// Asks before something that can't be undone. Where nobody sits at a terminal, there is nobody to ask.
    pub fn confirm(&self, question: &str) -> Result<(), Failure> {
        if !self.terminal || !std::io::stdin().is_terminal() {
            return Ok(());
        }
        eprint!("{question} [y/N] ");
        let mut answer = String::new();
        let read = std::io::stdin().read_line(&mut answer);
        match answer.trim() {
            "y" | "Y" | "yes" if read.is_ok() => Ok(()),
            _ => Err(Failure::new(Exit::Other, "nothing was changed")),
        }
    }

    /// Starts a phase. Drop it without [`Phase::done`] and it is taken off the screen.
    pub fn phase(&self, name: &str) -> Phase {
        let bar = self.terminal.then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.set_message(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Phase {
            ui: *self,
            name: name.to_owned(),
            bar,
            shown: String::new(),
        }
    }

    fn paint(self, colour: Colour, text: &str) -> String {
        if self.colour {
            format!("\x1b[{}m{text}\x1b[0m", colour as u8)
        } else {
            text.to_owned()
        }
    }
}

/// A step under way.
pub struct Phase {
    ui: Ui,
    name: String,
    bar: Option<ProgressBar>,
    shown: String,
}

impl Phase {
    /// Says how it goes. Off a terminal each new text is a line, so only tell what changed.
    /// Only a text's first line is told.
    pub fn update(&mut self, detail: &str) {
        let detail = detail.lines().next().unwrap_or_default();
        if detail == self.shown {
            return;
        }
        detail.clone_into(&mut self.shown);
        match &self.bar {
            Some(bar) => bar.set_message(format!("{}: {detail}", self.name)),
            None => eprintln!("... {}: {detail}", self.name),
        }
    }

    /// Says what is at hand, on a terminal only: too much for lines.
    pub fn show(&self, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{}: {detail}", self.name));
        }
    }

    /// The step is done.
    pub fn done(mut self, detail: &str) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
        let mark = self.ui.paint(Colour::Green, "ok ");
        if detail.is_empty() {
            eprintln!("{mark} {}", self.name);
        } else {
            eprintln!("{mark} {}: {detail}", self.name);
        }
    }
}

impl Drop for Phase {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
