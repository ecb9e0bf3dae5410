//! The plugin's file, and its place in the chain of the network that the runtime uses. The CNI's own agent may
//! rewrite that chain at any time: it is watched, and put right within milliseconds.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use spillway_cni::config::{Entry, PLUGIN};
use tokio::sync::{mpsc, watch};

use super::conf::{self, Change};

/// How often everything is looked at without any event: a directory that was replaced tells nobody.
const POLL: Duration = Duration::from_secs(10);

/// How long pods that started while the plugin wasn't in place may take to become known.
const DOUBT: Duration = Duration::from_secs(10);

/// Name of files that are being written; no runtime reads one of that name.
const FRESH: &str = ".spillway-cni.new";

/// Where things are, as this container sees them.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// The plugin that came with this agent.
    pub(super) plugin: PathBuf,
    /// Where the runtime looks for plugins.
    pub(super) programs: PathBuf,
    /// Where it looks for networks.
    pub(super) networks: PathBuf,
}

/// Keeps the plugin installed while it is wanted.
#[derive(Debug)]
pub(super) struct Installer {
    places: Places,
    entry: Entry,
    state: Mutex<State>,
    /// Counts changes of what it says.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    wanted: bool,
    problem: Option<String>,
    /// When the plugin was put into a chain that had been without it.
    put_in: Option<Instant>,
}

impl Installer {
    /// Wanted by nobody yet.
    pub(super) fn new(places: Places, entry: Entry) -> Arc<Self> {
        Arc::new(Self {
            places,
            entry,
            state: Mutex::default(),
            changed: watch::Sender::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the plugin is wanted, or no longer kept in place. Does nothing where that is so already.
    pub(super) fn want(&self, wanted: bool) {
        let mut state = self.state();
        if state.wanted != wanted {
            state.wanted = wanted;
            self.keep(&mut state);
        }
    }

    /// What keeps it from being in place.
    pub(super) fn problem(&self) -> Option<String> {
        self.state().problem.clone()
    }

    /// Until when pods that passed the plugin by may be there that nobody knows; none where there are none.
    pub(super) fn doubted_until(&self) -> Option<Instant> {
        let until = self.state().put_in? + DOUBT;
        (until > Instant::now()).then_some(until)
    }

    /// Says when [`Self::problem`] or [`Self::doubted_until`] changes otherwise than by time.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Puts right what isn't as wanted.
    pub(super) fn ensure(&self) {
        self.keep(&mut self.state());
    }

    fn keep(&self, state: &mut State) {
        if !state.wanted {
            return;
        }
        let (put_in, problem) = match self.install() {
            Ok(put_in) => (put_in, None),
            Err(problem) => (false, Some(problem)),
        };
        let mended = problem.is_none() && state.problem.is_some();
        let changed = problem != state.problem || put_in;
        if problem != state.problem {
            if let Some(problem) = &problem {
                tracing::error!(problem, "the CNI plugin isn't in place");
            } else {
                tracing::info!("the CNI plugin is in place again");
            }
            state.problem = problem;
        }
        if put_in || mended {
            state.put_in = Some(Instant::now());
        }
        if changed {
            self.changed.send_modify(|n| *n += 1);
        }
    }

    /// Answers whether some chain had been without the plugin, or why one is.
    fn install(&self) -> Result<bool, String> {
        // The program first: a chain that names a missing one starts no pods.
        self.install_program().map_err(|error| {
            format!(
                "the CNI plugin can't be put into {}: {error}",
                self.places.programs.display()
            )
        })?;
        let mut passed_over = Vec::new();
        let (mut found, mut put_in) = (false, false);
        for name in self.networks().map_err(|error| self.unlisted(&error))? {
            let path = self.places.networks.join(&name);
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                // It went meanwhile; there will be an event.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    passed_over.push(format!("{name}: {error}"));
                    continue;
                }
            };
            match conf::chained(&name, &text, &self.entry) {
                Ok(None) => {}
                Ok(Some(change)) => {
                    put_in = true;
                    self.write(&change, &path)
                        .map_err(|error| format!("{}: {error}", path.display()))?;
                    tracing::info!(
                        file = change.name,
                        "the CNI plugin was put into the network's chain"
                    );
                }
                Err(problem) => {
                    passed_over.push(problem.to_string());
                    continue;
                }
            }
            found = true;
            break;
        }
        if !passed_over.is_empty() {
            return Err(passed_over.join("; "));
        }
        if !found {
            return Err(format!(
                "there is no network configuration in {}; cni.confDir must be where the container runtime looks",
                self.places.networks.display()
            ));
        }
        Ok(put_in)
    }

    fn install_program(&self) -> io::Result<()> {
        let wanted = fs::read(&self.places.plugin)?;
        let target = self.places.programs.join(PLUGIN);
        if fs::read(&target).is_ok_and(|present| present == wanted) {
            return Ok(());
        }
        // Replaced in one step: a pod may start at any time.
        replace(&target, &wanted, 0o755)?;
        tracing::info!(program = %target.display(), "the CNI plugin's program was written");
        Ok(())
    }

    /// File names of networks in the order in which the runtime tries them; it uses the first.
    fn networks(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.places.networks)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if conf::is_configuration(&name) {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn unlisted(&self, error: &io::Error) -> String {
        format!(
            "networks in {} can't be listed: {error}",
            self.places.networks.display()
        )
    }

    fn write(&self, change: &Change, like: &Path) -> io::Result<()> {
        let mode = fs::metadata(like)?.permissions().mode() & 0o777;
        replace(
            &self.places.networks.join(&change.name),
            change.text.as_bytes(),
            mode,
        )?;
        match &change.remove {
            Some(old) => fs::remove_file(self.places.networks.join(old)),
            None => Ok(()),
        }
    }

    /// Takes the entry out of every chain that has it, then the program away; goes on past errors.
    pub(super) fn remove(&self) -> Result<(), String> {
        let mut state = self.state();
        state.wanted = false;
        state.problem = None;
        let mut errors = Vec::new();
        let names = self.networks().unwrap_or_else(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                errors.push(self.unlisted(&error));
            }
            Vec::new()
        });
        for name in names {
            let path = self.places.networks.join(&name);
            // What can't be read as a network has no entry of ours either.
            let change = fs::read_to_string(&path)
                .ok()
                .and_then(|text| conf::unchained(&name, &text).ok()?);
            if let Some(change) = change {
                match self.write(&change, &path) {
                    Ok(()) => tracing::info!(
                        file = change.name,
                        "the CNI plugin was taken out of the network's chain"
                    ),
                    Err(error) => errors.push(format!("{}: {error}", path.display())),
                }
            }
        }
        // A chain that still names it must find it.
        if errors.is_empty() {
            let program = self.places.programs.join(PLUGIN);
            match fs::remove_file(&program) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    errors.push(format!("{}: {error}", program.display()));
                }
                _ => {}
            }
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(format!(
                "the CNI plugin can't be taken away: {}",
                errors.join("; ")
            ))
        }
    }

    /// Keeps it in place for ever.
    pub(super) async fn watch(self: Arc<Self>) {
        let (inotify, mut changed) = match events() {
            Ok((inotify, changed)) => (Some(inotify), changed),
            Err(error) => {
                tracing::warn!(%error, "the CNI's directories can't be watched; they are looked at every 10 s");
                (None, mpsc::channel(1).1)
            }
        };
        loop {
            // With each look: a directory may be another one by now, and for the same one this changes nothing.
            for directory in [&self.places.networks, &self.places.programs] {
                if let Some(Err(error)) = inotify.as_ref().map(|i| i.add_watch(directory, changes())) {
                    tracing::debug!(directory = %directory.display(), %error, "directory can't be watched");
                }
            }
            self.ensure();
            if let Ok(None) = tokio::time::timeout(POLL, changed.recv()).await {
                tokio::time::sleep(POLL).await;
            }
        }
    }
}

fn changes() -> AddWatchFlags {
    AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
}

/// Watches are added to the first; the second then says that something changed. Which file it was doesn't matter.
fn events() -> io::Result<(Arc<Inotify>, mpsc::Receiver<()>)> {
    let inotify = Arc::new(Inotify::init(InitFlags::IN_CLOEXEC)?);
    let (sender, receiver) = mpsc::channel(1);
    let reader = inotify.clone();
    std::thread::Builder::new()
        .name("cni-directories".into())
        .spawn(move || {
            while reader.read_events().is_ok() {
                if let Err(mpsc::error::TrySendError::Closed(())) = sender.try_send(()) {
                    return;
                }
            }
        })?;
    Ok((inotify, receiver))
}

/// Replaces a file in one step, and on the medium: after a power failure a node without its network starts no pods.
fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let fresh = directory.join(FRESH);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(bytes)?;
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    drop(file);
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;

    struct Host(tempfile::TempDir);

    impl Host {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("directory");
            for name in ["bin", "net.d"] {
                fs::create_dir(directory.path().join(name)).expect("directory");
            }
            fs::write(directory.path().join("plugin"), "program").expect("written");
            Self(directory)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            fs::write(self.path(name), text).expect("written");
        }

        fn read(&self, name: &str) -> String {
            fs::read_to_string(self.path(name)).unwrap_or_default()
        }

        fn installer(&self) -> Arc<Installer> {
            let places = Places {
                plugin: self.path("plugin"),
                programs: self.path("bin"),
                networks: self.path("net.d"),
            };
            Installer::new(places, Entry::default())
        }
    }

    #[test]
    fn it_comes_and_goes_without_a_trace() {
        let host = Host::new();
        host.write("net.d/10-n.conflist", LIST);
        host.write("net.d/20-other.conflist", LIST);
        let installer = host.installer();
        installer.ensure();
        assert_eq!(host.read("net.d/10-n.conflist"), LIST, "nobody wants it yet");
        installer.want(true);
        assert!(host.read("net.d/10-n.conflist").contains(PLUGIN));
        assert_eq!(
            host.read("net.d/20-other.conflist"),
            LIST,
            "the runtime uses the first"
        );
        assert_eq!(host.read("bin/spillway-cni"), "program");
        let mode = fs::metadata(host.path("bin/spillway-cni"))
            .expect("file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
        assert_eq!(installer.problem(), None);
        host.write("plugin", "newer");
        installer.ensure();
        assert_eq!(host.read("bin/spillway-cni"), "newer");
        installer.remove().expect("removed");
        installer.remove().expect("nothing to remove is fine");
        installer.ensure();
        assert_eq!(host.read("net.d/10-n.conflist"), LIST);
        assert!(!host.path("bin/spillway-cni").exists());
        assert_eq!(
            fs::read_dir(host.path("net.d")).expect("listed").count(),
            2,
            "nothing else was left"
        );
    }

    #[test]
    fn a_file_that_cant_be_read_is_left_alone_and_told_of() {
        let host = Host::new();
        host.write("net.d/05-broken.conflist", "{");
        host.write("net.d/10-n.conflist", LIST);
        let installer = host.installer();
        installer.want(true);
        let problem = installer.problem().expect("a problem");
        assert!(problem.contains("05-broken.conflist"), "{problem}");
        assert_eq!(host.read("net.d/05-broken.conflist"), "{");
        assert!(
            host.read("net.d/10-n.conflist").contains(PLUGIN),
            "a runtime that passes it over uses this one"
        );
        fs::remove_file(host.path("net.d/05-broken.conflist")).expect("removed");
        installer.ensure();
        assert_eq!(installer.problem(), None);
    }

    #[tokio::test]
    async fn a_rewritten_chain_is_put_right_at_once() {
        let host = Host::new();
        host.write("net.d/10-n.conflist", LIST);
        let installer = host.installer();
        installer.want(true);
        let watching = tokio::spawn(installer.clone().watch());
        // Until the watch stands.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let single = r#"{"cniVersion":"1.0.0","name":"n","type":"ptp"}"#;
        for (name, text, list) in [
            ("net.d/10-n.conflist", LIST, "net.d/10-n.conflist"),
            ("net.d/00-first.conflist", LIST, "net.d/00-first.conflist"),
            ("net.d/00-a.conf", single, "net.d/00-a.conflist"),
        ] {
            host.write(name, text);
            let began = std::time::Instant::now();
            while !host.read(list).contains(PLUGIN) {
                assert!(
                    began.elapsed() < Duration::from_secs(2),
                    "{name} stays as it was written"
                );
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        fs::remove_file(host.path("bin/spillway-cni")).expect("removed");
        let began = std::time::Instant::now();
        while !host.path("bin/spillway-cni").exists() {
            assert!(began.elapsed() < Duration::from_secs(2), "the program stays away");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        watching.abort();
    }
}
