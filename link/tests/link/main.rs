//! Hub and members over real sockets on the loopback interface.
#![allow(unreachable_pub, clippy::unwrap_used, reason = "tests")]

mod attacks;
mod certificates;
mod common;
mod enroll;
mod plans;
mod rotation;
