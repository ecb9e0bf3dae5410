//! Machines: processes in network, mount, pid and host name namespaces of their own, with a root directory that looks
//! like a small Debian. A node is a machine with containerd, kubelet and kube-proxy; control planes and the outside
//! server are machines too, so all are started, reached and powered off the same way.

pub mod cgroup;
pub mod config;
pub mod init;
pub mod machine;
pub mod process;
mod root;
