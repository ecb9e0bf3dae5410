//! Answers the plugin.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use spillway_cni::protocol::{Answer, Ask, Attachment, LINE_LIMIT, Request, VERSION};
use spillway_core::node::inputs::Pod;
use spillway_core::node::sandbox::Sandbox;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use super::lookup::{Found, Lookup};
use super::{Cni, Standing, events};
use crate::cluster::Cluster;
use crate::observed::Observed;

/// Questions that are answered at the same time; further ones wait.
const AT_ONCE: usize = 256;

/// How long a question may take to arrive.
const ARRIVAL: Duration = Duration::from_secs(5);

/// A pod that is held for longer says so itself.
const LONG: Duration = Duration::from_secs(2);

/// How long this agent may take to learn whether there is a plan at all.
const FIRST_LOOK: Duration = Duration::from_secs(3);

/// How long the watch may take to show the labels of a namespace that has pods.
const NAMESPACE: Duration = Duration::from_secs(3);

/// How often the socket's file is looked at.
const SOCKET_CHECK: Duration = Duration::from_secs(1);

/// Longest time that a question is worked on, whatever it asks for.
const LIMIT: Duration = Duration::from_secs(60);

/// What answers.
pub(super) struct Server {
    cni: Cni,
    lookup: Lookup,
    node: String,
    observed: Observed,
}

impl Server {
    /// For the node of that name.
    pub(super) fn new(cni: Cni, cluster: Cluster, client: Client, node: String, observed: Observed) -> Self {
        Self {
            cni,
            lookup: Lookup { cluster, client },
            node,
            observed,
        }
    }

    async fn answer(&self, ask: Ask) -> Answer {
        match ask {
            Ask::Add { attachment, wait } => {
                self.add(attachment, Duration::from_millis(wait).min(LIMIT)).await
            }
            Ask::Del(gone) => {
                self.cni
                    .remove(|s| s.container == gone.container && s.interface == gone.interface);
                Answer::yes()
            }
            Ask::Check(attachment) => self.check(&attachment).await,
            Ask::Gc { containers } => {
                // The list is that of one network. Whom the API server still knows is left.
                let unseen = |s: &Sandbox| self.lookup.cluster.pod(&s.pod.namespace, &s.pod.name).is_none();
                self.cni
                    .remove(|s| !containers.contains(&s.container) && unseen(s));
                Answer::yes()
            }
        }
    }

    async fn add(&self, attachment: Attachment, wait: Duration) -> Answer {
        let began = Instant::now();
        let deadline = began + wait;
        let _waiting = Waiting::begin(&self.observed);
        let admitted = self.admit(&attachment, deadline);
        tokio::pin!(admitted);
        let outcome = if let Ok(outcome) = timeout_at(began + LONG, &mut admitted).await {
            outcome
        } else {
            let why = self.cni.standing().borrow().failure.clone();
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            let message = format!(
                "waiting for node {} to program its egress policies{why}",
                self.node
            );
            events::warn(&self.lookup.client, &attachment, &self.node, &message);
            admitted.await
        };
        let Attachment {
            namespace,
            pod,
            container,
            ..
        } = &attachment;
        let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.observed
            .metrics
            .cni_held
            .observe(began.elapsed().as_secs_f64());
        let result = match outcome {
            Ok(true) => "programmed",
            Ok(false) => "unselected",
            Err(_) => "refused",
        };
        self.observed.metrics.cni.inc([result]);
        match outcome {
            Ok(selected) => {
                tracing::debug!(
                    node = self.node,
                    namespace,
                    pod,
                    container,
                    selected,
                    milliseconds,
                    "pod may start"
                );
                Answer::yes()
            }
            Err(why) => {
                tracing::warn!(
                    node = self.node,
                    namespace,
                    pod,
                    container,
                    why,
                    milliseconds,
                    "pod is held"
                );
                events::warn(&self.lookup.client, &attachment, &self.node, &why);
                Answer::no(why)
            }
        }
    }

    /// Returns when the pod may start, with whether a policy selects it, or why it may not.
    async fn admit(&self, attachment: &Attachment, deadline: Instant) -> Result<bool, String> {
        let mut standing = self.cni.standing();
        let namespace = &attachment.namespace;
        let addresses = &attachment.addresses;
        // Where no earlier agent left word, nothing was ever planned here, as far as can be told.
        let in_question = self.cni.was_in_question(namespace, addresses);
        let limit = if in_question {
            deadline
        } else {
            deadline.min(Instant::now() + FIRST_LOOK)
        };
        let known = standing.wait_for(|s| s.planned.is_some());
        let planned = match timeout_at(limit, known).await.map(|s| s.map(|s| s.planned)) {
            Ok(Ok(planned)) => planned == Some(true),
            _ if in_question => {
                return Err(format!(
                    "the node agent on {} doesn't know its plan yet",
                    self.node
                ));
            }
            _ => false,
        };
        let could = |s: &Standing| s.scope.could_select_in(namespace);
        if planned && could(&standing.borrow()) && !standing.borrow().scope.knows(namespace) {
            let limit = deadline.min(Instant::now() + NAMESPACE);
            let labelled = standing.wait_for(|s| s.scope.knows(namespace) || !could(s));
            if timeout_at(limit, labelled).await.is_err() {
                return Err(format!(
                    "the labels of namespace {namespace} aren't known on node {}",
                    self.node
                ));
            }
        }
        let in_question = planned && could(&standing.borrow());
        let found = if in_question {
            self.find(attachment, deadline).await
        } else {
            // No policy can select it, whatever its labels are.
            let bare = || Pod {
                namespace: namespace.clone(),
                name: attachment.pod.clone(),
                uid: attachment.uid.clone(),
                ..Pod::default()
            };
            Found::Pod(self.lookup.seen(attachment).unwrap_or_else(bare))
        };
        let pod = match found {
            Found::Pod(pod) if pod.host_network => return Ok(false),
            Found::Pod(pod) => pod,
            Found::Gone => return Err("the API server doesn't know this pod (any more)".into()),
            Found::Unknown(why) => {
                return Err(format!(
                    "a policy may select pods of namespace {namespace}, and the API server doesn't give this one's \
                     labels: {why}"
                ));
            }
        };
        let number = self.cni.add(Sandbox {
            container: attachment.container.clone(),
            interface: attachment.interface.clone(),
            pod: Pod {
                addresses: addresses.clone(),
                finished: false,
                removed: false,
                ..pod.clone()
            },
            fresh: true,
        });
        if !planned {
            return Ok(false);
        }
        let selected = {
            let now = standing.borrow();
            let selected = addresses.iter().any(|a| now.scope.selects(&pod, *a));
            if !selected && !now.guarded && now.selected.is_disjoint(addresses) {
                return Ok(false);
            }
            selected
        };
        let done = standing.wait_for(|s| s.done >= number || s.planned != Some(true));
        let done = timeout_at(deadline, done).await.map(|done| done.map(drop));
        match done {
            Ok(Ok(())) => Ok(selected),
            Ok(Err(_)) => Err("the node agent is ending".into()),
            Err(_) => {
                let why = standing.borrow().failure.clone();
                let why = why.unwrap_or_else(|| "its apply loop is busy".into());
                Err(format!(
                    "node {} can't program its egress policies in time: {why}",
                    self.node
                ))
            }
        }
    }

    /// The pod; where the API server doesn't answer at once it is asked again for as long as there is time.
    async fn find(&self, attachment: &Attachment, deadline: Instant) -> Found {
        loop {
            let found = self.lookup.find(attachment).await;
            let again = Instant::now() + Duration::from_millis(500);
            match found {
                Found::Unknown(_) if again < deadline => tokio::time::sleep_until(again).await,
                found => return found,
            }
        }
    }

    async fn check(&self, attachment: &Attachment) -> Answer {
        let standing = self.cni.standing().borrow().clone();
        let found = self.lookup.find(attachment).await;
        let selects = |address| match &found {
            Found::Pod(pod) => standing.scope.selects(pod, address),
            Found::Gone => false,
            Found::Unknown(_) => standing.scope.could_select_in(&attachment.namespace),
        };
        let missing: BTreeSet<_> = attachment
            .addresses
            .difference(&standing.selected)
            .filter(|a| selects(**a))
            .collect();
        if !missing.is_empty() {
            return Answer::no(format!("node {} hasn't programmed {missing:?}", self.node));
        }
        Answer::yes()
    }
}

/// A pod that waits.
struct Waiting<'a>(&'a Observed);

impl<'a> Waiting<'a> {
    fn begin(observed: &'a Observed) -> Self {
        observed.metrics.cni_waiting.inc();
        Self(observed)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.metrics.cni_waiting.dec();
    }
}

async fn converse(server: &Server, stream: UnixStream) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut line = Vec::new();
    let limit = u64::try_from(LINE_LIMIT).unwrap_or(u64::MAX);
    let mut reader = BufReader::new(reader.take(limit));
    let read = reader.read_until(b'\n', &mut line);
    match tokio::time::timeout(ARRIVAL, read).await {
        Ok(read) => read?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    };
    let answer = match serde_json::from_slice::<Request>(&line) {
        Ok(request) if request.version <= VERSION => server.answer(request.ask).await,
        Ok(request) => Answer::no(format!(
            "the plugin speaks version {} and this node agent {VERSION}: it is older than the plugin",
            request.version
        )),
        Err(error) => Answer::no(format!("the question can't be read: {error}")),
    };
    let mut bytes = serde_json::to_vec(&answer)?;
    bytes.push(b'\n');
    writer.write_all(&bytes).await
}

/// Opens the socket at `path`, for root only, in the place of one that an earlier agent left.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)?;
    }
    // Under another name until only root may connect.
    let fresh = path.with_extension("new");
    for old in [&fresh, path] {
        match fs::remove_file(old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let listener = UnixListener::bind(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600))?;
    fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Takes the socket's file away at the end, unless it is another agent's by then.
struct Tidy<'a> {
    path: &'a Path,
    mine: Option<(u64, u64)>,
}

impl Drop for Tidy<'_> {
    fn drop(&mut self) {
        if identity(self.path) == self.mine {
            _ = fs::remove_file(self.path);
        }
    }
}

/// What tells the socket at `path` from another one there.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Serves for ever; returns the error where that isn't possible.
pub(super) async fn serve(server: Server, path: &Path) -> io::Error {
    let server = Arc::new(server);
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let listener = match listen(path) {
            Ok(listener) => listener,
            Err(error) => return error,
        };
        let mine = identity(path);
        let _tidy = Tidy { path, mine };
        // Somebody may tidy up /run; nobody would find the way any more.
        let replaced = async {
            while identity(path) == mine {
                tokio::time::sleep(SOCKET_CHECK).await;
            }
        };
        tokio::select! {
            () = accept(&listener, &server, &room) => {}
            () = replaced => tracing::warn!(path = %path.display(), "the CNI plugin's socket is gone; it is made anew"),
        }
    }
}

async fn accept(listener: &UnixListener, server: &Arc<Server>, room: &Arc<Semaphore>) {
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let server = server.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(&server, stream).await {
                        tracing::debug!(%error, "a question from the CNI plugin came to nothing");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection of the CNI plugin can't be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
