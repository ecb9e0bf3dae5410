//! The node image: kind's own files, a small Debian, and the toolbox's programs, put together as kind's image is.
//!
//! Upstream's comes from a registry. Where there is none, this one is made once and kept in the cache as what it
//! becomes in a Docker: a data directory with one image in it, of which every arena's Docker gets a copy made of links.

use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::{
    image::{self, Image},
    provision::{KubernetesVersion, OwnDocker, Toolbox, process, progress::Progress},
};

/// Changed with what is done here, so that an image that was made in another way isn't taken for this one.
const RECIPE: u32 = 1;

/// The Debian release of the image: the arena's own, so that programs of this machine run in it.
const SUITE: &str = "bookworm";

const MIRROR: &str = "http://deb.debian.org/debian";

/// What kind's own image installs and a cluster of ours uses, and what scenarios look at kernels with.
const PACKAGES: &[&str] = &[
    "bash",
    "ca-certificates",
    "conntrack",
    "ethtool",
    "iproute2",
    "ipset",
    "iptables",
    "jq",
    "kmod",
    "libseccomp2",
    "mount",
    "nftables",
    "procps",
    "runc",
    "systemd",
    "util-linux",
];

/// Name of the image in a Docker.
pub(crate) fn reference(version: KubernetesVersion) -> String {
    format!("spillway/kind-node:{version}")
}

/// Where the cache has the image, or will have it.
pub(super) fn place(
    toolbox: &Toolbox,
    kind: &Path,
    tools: &OwnDocker,
    version: KubernetesVersion,
) -> PathBuf {
    let mut hash = Sha256::new();
    // The folders of programs are named by their pins.
    let programs = [
        kind.to_owned(),
        tools.kubeadm.clone(),
        toolbox.kubernetes(&version, "kubelet"),
        toolbox.bin("etcd"),
        toolbox.bin("containerd"),
    ];
    for program in programs {
        hash.update(program.display().to_string());
        hash.update("\n");
    }
    hash.update(format!("{RECIPE} {SUITE} {}", PACKAGES.join(" ")));
    let key = hex::encode(&hash.finalize()[..8]);
    root(toolbox).join(format!("node-image-{key}"))
}

fn root(toolbox: &Toolbox) -> PathBuf {
    toolbox.cache().join("kind")
}

/// Makes the image's root directory, beside `place`.
pub(super) fn make(
    toolbox: &Toolbox,
    tools: &OwnDocker,
    version: KubernetesVersion,
    place: &Path,
) -> Result<TempDir> {
    let folder = place.parent().context("the image has a place in a folder")?;
    fs::create_dir_all(folder)?;
    forget(folder)?;
    let scratch = tempfile::Builder::new().prefix(BUILDING).tempdir_in(folder)?;
    let root = scratch.path();
    // A folder of tempfile's is its owner's only, and this one becomes the root directory of every node.
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    debian(tools, root).context("the node image's Debian")?;
    kind_files(tools, root).context("kind's own files")?;
    programs(toolbox, tools, version, root).context("the node image's programs")?;
    services(root).context("the node image's services")?;
    let images = components(toolbox, tools, version, root).context("images in the node image")?;
    store(toolbox, root, &images).context("images in the node image")?;
    Ok(scratch)
}

const BUILDING: &str = ".building-";

/// Removes what a killed maker left.
fn forget(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(BUILDING) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("remove the leftover {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Runs a long command whose messages show how far it is.
fn long(command: &mut Command, what: &str) -> Result<()> {
    let mut progress = Progress::start(what, 0);
    let mut last = "starting".to_owned();
    let finished = process::run(command, |line| {
        if let Some(line) = line {
            line.trim().clone_into(&mut last);
        }
        progress.show(&last);
    })?;
    if finished.status.success() {
        progress.finish();
        return Ok(());
    }
    progress.abandon();
    bail!("{what}: {}\n{}", finished.status, finished.tail.join("\n"))
}

/// In namespaces of its own: what is mounted and started there is gone with it, however it ends.
fn apart(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["sh", "-ec", script]);
    command
}

/// debootstrap checks the archive's signature and each package's hash.
fn debian(tools: &OwnDocker, root: &Path) -> Result<()> {
    let script = format!(
        "exec {}/usr/sbin/debootstrap --variant=minbase --include={} \
         --keyring=/usr/share/keyrings/debian-archive-keyring.gpg {SUITE} {} {MIRROR} >&2",
        tools.debian.display(),
        PACKAGES.join(","),
        root.display()
    );
    let mut command = apart(&script);
    command
        .env("DEBOOTSTRAP_DIR", tools.debian.join("usr/share/debootstrap"))
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("LC_ALL", "C");
    long(&mut command, "installing a small Debian for kind's nodes")?;
    // Downloaded packages and lists are of no use to a node.
    for folder in [
        "var/cache/apt",
        "var/lib/apt/lists",
        "usr/share/doc",
        "usr/share/locale",
    ] {
        let folder = root.join(folder);
        fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
        fs::create_dir_all(&folder)?;
    }
    Ok(())
}

fn kind_files(tools: &OwnDocker, root: &Path) -> Result<()> {
    let files = tools.kind_source.join("images/base/files");
    for (folder, mode) in [
        ("kind", 0o644),
        ("etc", 0o644),
        ("kind/bin", 0o755),
        ("usr/local/bin", 0o755),
    ] {
        copy(&files.join(folder), &root.join(folder), mode)?;
    }
    Ok(())
}

/// Copies a tree with one mode for all of its files: the module cache keeps none.
fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target, mode)?;
        } else {
            install(&entry.path(), &target, mode)?;
        }
    }
    Ok(())
}

fn install(from: &Path, to: &Path, mode: u32) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    // Written anew, so that a file that is there, and may be read-only or a link, is replaced.
    let _absent_is_fine = fs::remove_file(to);
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

fn programs(toolbox: &Toolbox, tools: &OwnDocker, version: KubernetesVersion, root: &Path) -> Result<()> {
    install(&tools.kubeadm, &root.join("usr/bin/kubeadm"), 0o755)?;
    for name in ["kubelet", "kubectl"] {
        install(
            &toolbox.kubernetes(&version, name),
            &root.join("usr/bin").join(name),
            0o755,
        )?;
    }
    for name in ["containerd", "containerd-shim-runc-v2", "ctr"] {
        install(&toolbox.bin(name), &root.join("usr/local/bin").join(name), 0o755)?;
    }
    copy(&toolbox.cni_dir(), &root.join("opt/cni/bin"), 0o755)?;
    fs::write(root.join("kind/version"), version.to_string())?;
    fs::create_dir_all(root.join("etc/kubernetes/manifests"))?;

    // What every container of a node starts from: containerd's default, and kind's hook.
    let output = Command::new(toolbox.bin("ctr")).args(["oci", "spec"]).output()?;
    ensure!(
        output.status.success(),
        "ctr oci spec: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut spec: Value = serde_json::from_slice(&output.stdout).context("ctr oci spec")?;
    spec["hooks"]["createContainer"] = json!([{"path": "/kind/bin/mount-product-files.sh"}]);
    if let Some(process) = spec["process"].as_object_mut() {
        process.remove("rlimits");
    }
    fs::write(root.join("etc/containerd/cri-base.json"), spec.to_string())?;
    let file = root.join(CONTAINERD);
    let config = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let (unrestricted, restricted) = ("restrict_oom_score_adj = false", "restrict_oom_score_adj = true");
    ensure!(
        config.contains(unrestricted),
        "{} says nothing of OOM scores",
        file.display()
    );
    fs::write(&file, config.replace(unrestricted, restricted))?;
    Ok(())
}

const CONTAINERD: &str = "etc/containerd/config.toml";

/// Which services a node starts: containerd, kubelet and journald, and next to nothing of Debian's.
fn services(root: &Path) -> Result<()> {
    let system = root.join("lib/systemd/system");
    for folder in [
        root.join("lib/systemd/system/multi-user.target.wants"),
        root.join("lib/systemd/system/local-fs.target.wants"),
        root.join("lib/systemd/system/basic.target.wants"),
    ] {
        unlink(&folder, |_| true)?;
    }
    unlink(&system.join("sysinit.target.wants"), |name| {
        name == "systemd-tmpfiles-setup.service"
    })?;
    unlink(&system.join("sockets.target.wants"), |name| {
        name.contains("udev") || name.contains("initctl")
    })?;
    let own = root.join("etc/systemd/system");
    for entry in fs::read_dir(&own)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "wants") {
            unlink(&path, |_| true)?;
        }
    }
    let wants = own.join("multi-user.target.wants");
    fs::create_dir_all(&wants)?;
    for unit in [
        "containerd.service",
        "kubelet.service",
        "undo-mount-hacks.service",
    ] {
        symlink(Path::new("/etc/systemd/system").join(unit), wants.join(unit))?;
    }
    // It would register formats with the machine's kernel, not with the node.
    symlink("/dev/null", own.join("systemd-binfmt.service"))?;
    let journal = root.join("etc/systemd/journald.conf");
    let mut text = fs::read_to_string(&journal).unwrap_or_else(|_| "[Journal]\n".to_owned());
    text.push_str("ReadKMsg=no\n");
    fs::write(&journal, text)?;
    // The machine's own setting, not a node's.
    let _absent_is_fine = fs::remove_file(root.join("usr/lib/sysctl.d/99-protect-links.conf"));
    let init = root.join("sbin/init");
    if !init.exists() {
        symlink("/usr/lib/systemd/systemd", &init)?;
    }
    Ok(())
}

fn unlink(folder: &Path, which: impl Fn(&str) -> bool) -> Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let entry = entry?;
        if which(&entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path()).with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// The images that kubeadm wants for a control plane and its nodes, made from the toolbox's programs.
fn components(
    toolbox: &Toolbox,
    tools: &OwnDocker,
    version: KubernetesVersion,
    root: &Path,
) -> Result<Vec<Image>> {
    let output = Command::new(&tools.kubeadm)
        .args([
            "config",
            "images",
            "list",
            "--kubernetes-version",
            &version.to_string(),
        ])
        .output()
        .context("run kubeadm")?;
    ensure!(
        output.status.success(),
        "kubeadm config images list: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut images = Vec::new();
    for reference in String::from_utf8_lossy(&output.stdout).lines() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        let name = name.split(':').next().unwrap_or_default();
        let program = match name {
            "etcd" => toolbox.bin("etcd"),
            "kube-apiserver" | "kube-controller-manager" | "kube-scheduler" | "kube-proxy" => {
                toolbox.kubernetes(&version, name)
            }
            // Pods start from what containerd calls the sandbox; DNS is none of this cluster's.
            "pause" | "coredns" => continue,
            other => bail!("kubeadm wants an image {other}, and nobody here knows how to make it"),
        };
        images.push(image::component(toolbox, name, reference, &program)?);
    }
    let config = fs::read_to_string(root.join(CONTAINERD))?;
    let sandbox = config
        .lines()
        .find_map(|line| line.trim().strip_prefix("sandbox_image = "))
        .context("containerd's configuration names no sandbox image")?;
    images.push(image::sandbox(toolbox, "kind-pause", sandbox.trim_matches('"'))?);
    Ok(images)
}

/// Puts images into the content store of the image's containerd, packed: a node unpacks what it runs.
fn store(toolbox: &Toolbox, root: &Path, images: &[Image]) -> Result<()> {
    let ctr = format!(
        "{} --address /run/c.sock --namespace k8s.io",
        toolbox.bin("ctr").display()
    );
    let mut script = format!(
        "mount -t tmpfs tmpfs /run\n\
         {} --root {}/var/lib/containerd --state /run/c --address /run/c.sock --log-level warn &\n\
         containerd=$!\n\
         for i in $(seq 300); do {ctr} version >/dev/null 2>&1 && break; sleep 0.1; done\n",
        toolbox.bin("containerd").display(),
        root.display()
    );
    for Image { reference, tar, .. } in images {
        let _never_fails = writeln!(
            script,
            "echo {reference} >&2\n\
             {ctr} images import --label=io.cri-containerd.pinned=pinned --all-platforms --no-unpack {} >&2",
            tar.display()
        );
    }
    // Ended gently, so that its database is whole on disk.
    script += "kill $containerd\nwait || true\n";
    long(
        &mut apart(&script),
        "putting the control plane's images into the node image",
    )
}

/// Gives the root directory to a Docker as an image.
pub(super) fn import(docker: impl Fn(&[&str]) -> Command, root: &Path, reference: &str) -> Result<()> {
    let mut tar = Command::new("tar")
        .args(["--numeric-owner", "--xattrs", "-C"])
        .arg(root)
        .args(["-cf", "-", "."])
        .stdout(Stdio::piped())
        .spawn()
        .context("run tar")?;
    let packed = tar.stdout.take().context("tar has no output")?;
    let mut command = docker(&[
        "import",
        "--change=ENV container=docker",
        "--change=ENTRYPOINT [\"/usr/local/bin/entrypoint\", \"/sbin/init\"]",
        "-",
        reference,
    ]);
    let output = command.stdin(packed).output().context("run docker import")?;
    let packing = tar.wait()?;
    ensure!(packing.success(), "tar: {packing}");
    ensure!(
        output.status.success(),
        "docker import: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Keeps a Docker's data directory, which holds nothing but the image, in the cache. The daemon has ended.
pub(super) fn keep(data: &Path, place: &Path) -> Result<()> {
    let folder = place.parent().context("the image has a place in a folder")?;
    let scratch = tempfile::Builder::new().prefix(BUILDING).tempdir_in(folder)?;
    let copy = scratch.path().join("data");
    lay_out(data, &copy)?;
    fs::rename(&copy, place).with_context(|| format!("move the node image to {}", place.display()))?;
    fs::remove_dir_all(data).with_context(|| format!("remove {}", data.display()))?;
    Ok(())
}

/// Copies a data directory: the layers' files as links, since nobody writes to a layer, the daemon's records as files.
pub(super) fn lay_out(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let path = entry?.path();
        let layers = path.file_name().is_some_and(|name| name == "overlay2");
        if layers && cp(&["--archive", "--link"], &path, to).is_ok() {
            continue;
        }
        // Another filesystem takes no links.
        cp(&["--archive"], &path, to)?;
    }
    Ok(())
}

fn cp(flags: &[&str], from: &Path, to: &Path) -> Result<()> {
    let output = Command::new("cp").args(flags).arg(from).arg(to).output()?;
    ensure!(
        output.status.success(),
        "cp {} {}: {}",
        from.display(),
        to.display(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_laid_out_image_shares_its_layers_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for file in ["overlay2/layer/diff/program", "image/repositories.json"] {
            let file = from.join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "text").unwrap();
        }
        lay_out(&from, &to).unwrap();
        let same =
            |file: &str| from.join(file).metadata().unwrap().ino() == to.join(file).metadata().unwrap().ino();
        assert!(same("overlay2/layer/diff/program"));
        assert!(!same("image/repositories.json"));
    }

    #[test]
    fn a_killed_makers_leftovers_go_and_images_stay() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".building-x")).unwrap();
        fs::create_dir(dir.path().join("node-image-y")).unwrap();
        forget(dir.path()).unwrap();
        let left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left, ["node-image-y"]);
    }
}
