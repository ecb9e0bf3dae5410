//! Container images made from files of this machine: there is no registry and no container builder.
//!
//! ```text
//! pause · probe · workspace ── Recipe (archive) ── Tree (tar) → CACHE/images/NAME-DIGEST.tar
//!                          └── ldd: a program's libraries   └── workspace: target/debug programs
//! ```

mod archive;
mod ldd;
mod tar;
mod workspace;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::provision::Toolbox;
use archive::{Recipe, furnish};
use tar::{Node, Tree};
use workspace::Program;

/// An image as an archive that `ctr images import` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The full reference, such as `docker.io/spillway/hub:dev`.
    pub reference: String,
    /// The archive: an OCI layout and a docker-archive in one.
    pub tar: PathBuf,
    /// The manifest's digest with its `sha256:`, as `ctr images ls` prints it: equal digests are equal images.
    pub digest: String,
}

/// Reference of the image of every pod's sandbox.
pub const PAUSE: &str = "docker.io/spillway/pause:dev";
/// Reference of the image of test pods.
pub const PROBE: &str = "docker.io/spillway/probe:dev";

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The user of programs that need no rights on their node.
const NONROOT: &str = "65532:65532";

/// The image of pod sandboxes: a program that waits.
pub fn pause(toolbox: &Toolbox) -> anyhow::Result<Image> {
    sandbox(toolbox, "pause", PAUSE)
}

/// The same under another name, for a containerd that is told another one.
pub(crate) fn sandbox(toolbox: &Toolbox, name: &str, reference: &str) -> anyhow::Result<Image> {
    let mut tree = Tree::default();
    add_program(&mut tree, &toolbox.bin("busybox"), "/bin/busybox")?;
    let recipe = Recipe {
        name: name.to_owned(),
        reference: reference.to_owned(),
        tree,
        entrypoint: words(&["/bin/busybox", "sleep", "infinity"]),
        arguments: Vec::new(),
        environment: words(&[PATH]),
        user: NONROOT.to_owned(),
    };
    recipe.make(&folder(toolbox)?)
}

/// The image of test pods: the probe as entry point, idle unless told otherwise, and busybox's tools beside it.
pub fn probe(toolbox: &Toolbox) -> anyhow::Result<Image> {
    let program = Program {
        package: "spillway-e2e",
        name: "probe",
    };
    let binary = workspace::programs(&[program])?.remove(0);
    let busybox = toolbox.bin("busybox");
    let mut tree = Tree::default();
    furnish(&mut tree);
    for applet in applets(&busybox)? {
        tree.put(&applet, Node::Link("/bin/busybox".to_owned()));
    }
    add_program(&mut tree, &busybox, "/bin/busybox")?;
    add_program(&mut tree, &binary, "/usr/local/bin/probe")?;
    let recipe = Recipe {
        name: "probe".to_owned(),
        reference: PROBE.to_owned(),
        tree,
        entrypoint: words(&["/usr/local/bin/probe"]),
        arguments: words(&["sleep"]),
        environment: words(&[PATH]),
        user: "0:0".to_owned(),
    };
    recipe.make(&folder(toolbox)?)
}

/// The image of a part of Kubernetes that runs as a pod, called as kubeadm calls it.
pub(crate) fn component(
    toolbox: &Toolbox,
    name: &str,
    reference: &str,
    program: &Path,
) -> anyhow::Result<Image> {
    let entrypoint = format!("/usr/local/bin/{name}");
    let mut tree = Tree::default();
    furnish(&mut tree);
    add_program(&mut tree, program, &entrypoint)?;
    if name == "kube-proxy" {
        add_program(&mut tree, &toolbox.bin("nft"), "/usr/sbin/nft")?;
    }
    let recipe = Recipe {
        name: format!("kind-{name}"),
        reference: reference.to_owned(),
        tree,
        entrypoint: vec![entrypoint],
        arguments: Vec::new(),
        environment: words(&[PATH]),
        user: "0:0".to_owned(),
    };
    recipe.make(&folder(toolbox)?)
}

/// The images of the workspace's daemons: hub, member-agent, node-agent, in this order.
pub fn workspace(toolbox: &Toolbox) -> anyhow::Result<Vec<Image>> {
    const DAEMONS: [(&str, Program, &str); 3] = [
        (
            "hub",
            Program {
                package: "spillway-hub",
                name: "spillway-hub",
            },
            NONROOT,
        ),
        (
            "member-agent",
            Program {
                package: "spillway-member-agent",
                name: "spillway-member-agent",
            },
            NONROOT,
        ),
        (
            "node-agent",
            Program {
                package: "spillway-node-agent",
                name: "spillway-node-agent",
            },
            "0:0",
        ),
    ];
    // Runs in the nodes' own files, which here are this machine's: it needs no libraries of the image.
    const PLUGIN: Program = Program {
        package: "spillway-cni",
        name: "spillway-cni",
    };
    let binaries = workspace::programs(&DAEMONS.map(|(_, program, _)| program))?;
    let plugin = workspace::programs(&[PLUGIN])?.remove(0);
    let folder = folder(toolbox)?;
    DAEMONS
        .iter()
        .zip(&binaries)
        .map(|((name, program, user), binary)| {
            let entrypoint = format!("/usr/local/bin/{}", program.name);
            let mut tree = Tree::default();
            furnish(&mut tree);
            add_program(&mut tree, binary, &entrypoint)?;
            if *name == "node-agent" {
                add_program(&mut tree, &toolbox.bin("nft"), "/usr/sbin/nft")?;
                add_program(&mut tree, &plugin, "/usr/local/bin/spillway-cni")?;
            }
            let recipe = Recipe {
                name: (*name).to_owned(),
                reference: format!("docker.io/spillway/{name}:dev"),
                tree,
                entrypoint: vec![entrypoint],
                arguments: Vec::new(),
                environment: words(&[PATH]),
                user: (*user).to_owned(),
            };
            recipe.make(&folder)
        })
        .collect()
}

/// The name that Go and OCI have for this machine's processor.
pub(crate) fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Puts a program into the tree together with the libraries it loads, at the paths where this machine's loader finds them.
fn add_program(tree: &mut Tree, program: &Path, path: &str) -> anyhow::Result<()> {
    for library in ldd::closure(program)? {
        let place = library.to_string_lossy().into_owned();
        tree.put(&place, Node::File(library, 0o755));
    }
    tree.put(path, Node::File(program.to_owned(), 0o755));
    Ok(())
}

/// Paths of the tools that a busybox can be called as.
fn applets(busybox: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new(busybox)
        .arg("--list-full")
        .output()
        .with_context(|| format!("cannot run {}", busybox.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let applets: Vec<String> = text
        .lines()
        .filter(|line| *line != "bin/busybox")
        .map(str::to_owned)
        .collect();
    if applets.is_empty() {
        bail!("{} --list-full names no tools", busybox.display());
    }
    Ok(applets)
}

fn folder(toolbox: &Toolbox) -> anyhow::Result<PathBuf> {
    let folder = toolbox.cache().join("images");
    let stamps = folder.join("stamps");
    std::fs::create_dir_all(&stamps).with_context(|| format!("cannot make {}", stamps.display()))?;
    Ok(folder)
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}
