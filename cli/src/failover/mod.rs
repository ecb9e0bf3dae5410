//! `spillway failover`: which node answers for which egress IP, and moving them.

mod drain;
mod pin;
mod status;

pub use drain::{drain, undrain};
pub use pin::{pin, unpin};
pub use status::status;
