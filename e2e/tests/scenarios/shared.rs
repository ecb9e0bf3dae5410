//! What a scenario is.

use anyhow::Result;
use futures::future::BoxFuture;
use spillway_e2e::federation::{Federation, Shape};
use spillway_e2e::{Need, Provider};

/// A story, and what it needs.
pub(crate) struct Scenario {
    /// `group::name`.
    pub(crate) name: String,
    /// What not every provider can do for it.
    pub(crate) needs: &'static [Need],
    /// The story.
    pub(crate) story: Story,
}

/// What a story is told to.
pub(crate) enum Story {
    /// The federation of that shape, which all these share.
    Federation(Shape, for<'a> fn(&'a Federation) -> BoxFuture<'a, Result<()>>),
    /// Clusters that it brings up and takes down itself.
    Alone(fn() -> BoxFuture<'static, Result<()>>),
}

impl Scenario {
    /// Why the provider can't do what it needs; `None` where it can.
    pub(crate) fn lacking(&self, provider: Provider) -> Option<&'static str> {
        self.needs.iter().find_map(|need| provider.lacks(*need))
    }

    /// Number of the lane that it runs in: what is told to the standard federation takes about as long as all the rest.
    pub(crate) fn lane(&self) -> usize {
        match self.story {
            Story::Federation(Shape::Standard, _) => 0,
            Story::Federation(..) | Story::Alone(_) => 1,
        }
    }

    /// The same, needing this as well.
    pub(crate) fn needing(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }
}

/// Makes the list entry of a scenario that is an `async fn(&Federation) -> Result<()>` (on the standard federation, or
/// with `on SHAPE` on another), or, with `alone`, an `async fn() -> Result<()>`. What not every provider can do for it
/// is added with [`Scenario::needing`].
macro_rules! scenario {
    ($group:literal, $module:ident :: $name:ident) => {
        crate::shared::scenario!($group, on Standard $module::$name)
    };
    ($group:literal, on $shape:ident $module:ident :: $name:ident) => {
        crate::shared::Scenario {
            name: concat!($group, "::", stringify!($name)).to_owned(),
            needs: &[],
            story: crate::shared::Story::Federation(
                spillway_e2e::federation::Shape::$shape,
                |federation| Box::pin($module::$name(federation)),
            ),
        }
    };
    ($group:literal, alone $module:ident :: $name:ident) => {
        crate::shared::Scenario {
            name: concat!($group, "::", stringify!($name)).to_owned(),
            needs: &[],
            story: crate::shared::Story::Alone(|| Box::pin($module::$name())),
        }
    };
}
pub(crate) use scenario;
