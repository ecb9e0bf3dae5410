//! Chance, and selectors in words of the oracle's own.

use std::collections::BTreeMap;

use spillway_crds::{LabelSelector, Operator, Requirement};

pub(crate) type Labels = BTreeMap<String, String>;

/// Numbers out of one seed (a linear congruential generator with Knuth's constants).
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        u32::try_from(self.0 >> 33).expect("31 bits") % n
    }

    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(u32::try_from(list.len()).expect("few")) as usize]
    }
}

/// What a selector asks for, in words of the oracle's own.
#[derive(Clone, Debug)]
pub(crate) enum Asks {
    All,
    Is(&'static str, &'static str),
    OneOf(&'static str, Vec<&'static str>),
    NoneOf(&'static str, Vec<&'static str>),
    Has(&'static str),
    Both(Box<Asks>, Box<Asks>),
}

impl Asks {
    pub(crate) fn met(&self, labels: &Labels) -> bool {
        let value = |key: &str| labels.get(key).map(String::as_str);
        match self {
            Self::All => true,
            Self::Is(key, wanted) => value(key) == Some(wanted),
            Self::OneOf(key, wanted) => value(key).is_some_and(|v| wanted.contains(&v)),
            Self::NoneOf(key, unwanted) => !value(key).is_some_and(|v| unwanted.contains(&v)),
            Self::Has(key) => value(key).is_some(),
            Self::Both(a, b) => a.met(labels) && b.met(labels),
        }
    }

    pub(crate) fn written(&self) -> LabelSelector {
        let mut selector = LabelSelector::default();
        self.write(&mut selector);
        selector
    }

    pub(crate) fn write(&self, to: &mut LabelSelector) {
        let mut add = |key: &str, operator, values: &[&str]| {
            to.match_expressions.push(Requirement {
                key: key.into(),
                operator,
                values: values.iter().map(|v| (*v).to_owned()).collect(),
            });
        };
        match self {
            Self::All => {}
            Self::Is(key, value) => {
                to.match_labels.insert((*key).into(), (*value).into());
            }
            Self::OneOf(key, values) => add(key, Operator::In, values),
            Self::NoneOf(key, values) => add(key, Operator::NotIn, values),
            Self::Has(key) => add(key, Operator::Exists, &[]),
            Self::Both(a, b) => {
                a.write(to);
                b.write(to);
            }
        }
    }
}
