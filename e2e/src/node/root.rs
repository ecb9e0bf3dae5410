//! The root directory of a machine: the system's programs read-only, everything else its own.
//!
//! Standard paths are what this buys: a DaemonSet with `hostPath` volumes, kubelet and the CNI plugins all run
//! unmodified, and whatever they write vanishes with the machine's directory.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{chdir, pivot_root},
};

use super::machine::{Bind, MachineSpec};

/// What a machine's `/etc` takes over; the rest would be the developer's own settings and secrets.
const ETC: &[&str] = &[
    "alternatives",
    "ca-certificates",
    "group",
    "iproute2",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "nsswitch.conf",
    "os-release",
    "passwd",
    "protocols",
    "services",
    "ssl",
];

/// Builds the root directory and moves this process's mount namespace into it.
///
/// The caller is in new mount and pid namespaces. Used again on the same directory after a power cycle.
pub(super) fn enter(spec: &MachineSpec) -> Result<()> {
    mount_at(
        None,
        Path::new("/"),
        None,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None,
    )?;
    let root = spec.dir.join("root");
    skeleton(&root, spec)?;
    bind(&root, &root)?;

    bind_read_only(Path::new("/usr"), &root.join("usr"))?;
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let (original, copy) = (Path::new("/").join(name), root.join(name));
        if original.is_dir() && !original.is_symlink() {
            fs::create_dir_all(&copy)?;
            bind_read_only(&original, &copy)?;
        }
    }
    for (target, options) in [("run", "mode=755"), ("tmp", "mode=1777")] {
        mount_at(
            Some(Path::new("tmpfs")),
            &root.join(target),
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options),
        )?;
    }
    mount_at(
        Some(Path::new("proc")),
        &root.join("proc"),
        Some("proc"),
        MsFlags::empty(),
        None,
    )?;
    // A fresh sysfs shows this namespace's network devices; it comes without the cgroup tree.
    mount_at(
        Some(Path::new("sysfs")),
        &root.join("sys"),
        Some("sysfs"),
        MsFlags::empty(),
        None,
    )?;
    bind(Path::new("/sys/fs/cgroup"), &root.join("sys/fs/cgroup"))?;
    bind(Path::new("/dev"), &root.join("dev"))?;
    for Bind {
        source,
        target,
        read_only,
    } in &spec.binds
    {
        let inside = root.join(target.strip_prefix("/").unwrap_or(target));
        fs::create_dir_all(&inside).with_context(|| format!("create {}", inside.display()))?;
        if *read_only {
            bind_read_only(source, &inside)?;
        } else {
            bind(source, &inside)?;
        }
    }

    let old = root.join(".machine");
    fs::create_dir_all(&old)?;
    pivot_root(&root, &old).context("pivot_root")?;
    chdir("/")?;
    umount2("/.machine", MntFlags::MNT_DETACH).context("let go of the machine's own files")?;
    // Kubelet hands mounts on to containers and takes theirs.
    mount_at(
        None,
        Path::new("/"),
        None,
        MsFlags::MS_REC | MsFlags::MS_SHARED,
        None,
    )
}

fn skeleton(root: &Path, spec: &MachineSpec) -> Result<()> {
    for dir in [
        "dev",
        "etc",
        "home",
        "mnt",
        "opt",
        "proc",
        "root",
        "run",
        "srv",
        "sys",
        "tmp",
        "usr",
        "var/cache",
        "var/lib",
        "var/log",
        "var/tmp",
    ] {
        fs::create_dir_all(root.join(dir))
            .with_context(|| format!("create {} in {}", dir, root.display()))?;
    }
    fs::set_permissions(root.join("root"), fs::Permissions::from_mode(0o700))?;
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        if let Ok(target) = fs::read_link(Path::new("/").join(name)) {
            link(&target, &root.join(name))?;
        }
    }
    link(Path::new("/run"), &root.join("var/run"))?;
    let etc = root.join("etc");
    if !etc.join("hostname").exists() {
        for name in ETC {
            copy_tree(&Path::new("/etc").join(name), &etc.join(name))?;
        }
        fs::write(
            etc.join("hosts"),
            format!("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {}\n", spec.name),
        )?;
        fs::write(etc.join("resolv.conf"), "")?;
        fs::write(etc.join("machine-id"), format!("{}\n", spec.machine_id))?;
        fs::write(etc.join("hostname"), format!("{}\n", spec.name))?;
    }
    Ok(())
}

fn link(target: &Path, at: &Path) -> Result<()> {
    if at.is_symlink() {
        return Ok(());
    }
    symlink(target, at).with_context(|| format!("link {}", at.display()))
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let Ok(meta) = fs::symlink_metadata(from) else {
        return Ok(());
    };
    if meta.is_symlink() {
        return link(&fs::read_link(from)?, to);
    }
    if meta.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy_tree(&entry.path(), &to.join(entry.file_name()))?;
        }
    } else if meta.is_file() {
        fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    }
    Ok(())
}

fn bind(source: &Path, target: &Path) -> Result<()> {
    mount_at(
        Some(source),
        target,
        None,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        None,
    )
}

fn bind_read_only(source: &Path, target: &Path) -> Result<()> {
    bind(source, target)?;
    mount_at(
        None,
        target,
        None,
        MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY,
        None,
    )
}

fn mount_at(
    source: Option<&Path>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    data: Option<&str>,
) -> Result<()> {
    mount(source, target, kind, flags, data).with_context(|| format!("mount {}", target.display()))
}
