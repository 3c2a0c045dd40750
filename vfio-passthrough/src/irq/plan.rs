//! From what the guest programmed and what is bound to the steps that make them agree. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::pci::message::{MsiMessage, ProgrammedVectors};

/// What is bound in the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoundState {
    /// VFIO has it on.
    pub enabled: bool,
    /// The vectors whose eventfd VFIO has. They stay bound while it is on: a masked vector's
    /// eventfd collects what fires.
    pub bound: BTreeSet<u16>,
    /// The vectors that are routed to the guest, with their messages.
    pub routed: BTreeMap<u16, MsiMessage>,
    /// The vectors that a failed step may have left either way: they are told again what they
    /// should be.
    pub uncertain: BTreeSet<u16>,
}

/// How VFIO lets vectors be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Whenever one is wanted (MSI-X since Linux 6.5).
    Dynamic,
    /// Not once it is on (`VFIO_IRQ_INFO_NORESIZE`; MSI always): turning it off to grow would lose
    /// interrupts, so all are bound at enable.
    Fixed,
}

/// One step of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Route vectors to the guest, or stop that: one batch.
    Route(Vec<(u16, Option<MsiMessage>)>),
    /// Turn it on without any vector: the function then keeps pending what it wants to signal.
    EnableEmpty,
    /// Give VFIO the eventfds of these vectors in one call; turns it on where it is off. They
    /// ascend, and none between them is bound.
    Bind(Vec<u16>),
    /// Turn it off.
    Disable,
}

/// The steps from `host` to what the guest wants; none where they agree.
///
/// A vector is routed before it is bound, and its route stops before the index is disabled, so that
/// no interrupt comes between. Stops are a batch of their own, so that they happen even where a
/// route cannot be made.
pub fn plan(wanted: &ProgrammedVectors, host: &BoundState, growth: Growth) -> Vec<Step> {
    let (stops, starts) = changes(&wanted.unmasked, host);
    let route = |changes: Vec<_>| (!changes.is_empty()).then_some(Step::Route(changes));
    let mut steps: Vec<Step> = route(stops).into_iter().collect();
    // A guest that changes how many vectors it enables, while they are on, starts over.
    let stale = growth == Growth::Fixed && host.bound.len() != usize::from(wanted.vectors);
    if host.enabled && (!wanted.enabled || stale) {
        steps.push(Step::Disable);
    }
    if wanted.enabled {
        steps.extend(route(starts));
        steps.extend(binding(wanted, host, growth, !host.enabled || stale));
    }
    steps
}

/// The steps that bind what is missing; `fresh` where nothing is on.
fn binding(
    wanted: &ProgrammedVectors,
    host: &BoundState,
    growth: Growth,
    fresh: bool,
) -> Vec<Step> {
    if growth == Growth::Fixed {
        let all = fresh.then(|| Step::Bind((0..wanted.vectors).collect()));
        return all.into_iter().collect();
    }
    let unbound = |vector: &&u16| !host.bound.contains(vector);
    let missing: Vec<u16> = wanted.unmasked.keys().filter(unbound).copied().collect();
    // The call that turns MSI-X on allocates every host vector up to the last that it names
    // (vfio_msi_enable): it names none, unless all of those are used.
    let gapless = missing.iter().zip(0..).all(|(vector, index)| *vector == index);
    let empty = fresh && (missing.is_empty() || !gapless);
    let first = empty.then_some(Step::EnableEmpty);
    first.into_iter().chain(groups(&missing, &host.bound)).collect()
}

/// A batch for the router.
type Changes = Vec<(u16, Option<MsiMessage>)>;

/// What to tell the router: vectors to stop, and vectors that are new or have another message.
fn changes(wanted: &BTreeMap<u16, MsiMessage>, host: &BoundState) -> (Changes, Changes) {
    let known: BTreeSet<u16> = host.routed.keys().chain(&host.uncertain).copied().collect();
    let stops = known
        .into_iter()
        .filter(|vector| !wanted.contains_key(vector))
        .map(|vector| (vector, None));
    let differs = |vector: &u16, message: &MsiMessage| {
        host.uncertain.contains(vector) || host.routed.get(vector) != Some(message)
    };
    let starts = wanted
        .iter()
        .filter(|(vector, message)| differs(vector, message))
        .map(|(vector, message)| (*vector, Some(*message)));
    (stops.collect(), starts.collect())
}

/// Splits vectors, which ascend, where a bound one is between: a call spans gaps of vectors that
/// are not bound, for which it does nothing, but would unbind those that are
/// (vfio_msi_set_vector_signal).
fn groups(vectors: &[u16], bound: &BTreeSet<u16>) -> Vec<Step> {
    vectors
        .chunk_by(|one, next| bound.range(*one..*next).next().is_none())
        .map(|group| Step::Bind(group.to_vec()))
        .collect()
}

impl BoundState {
    /// What the host is after a step succeeded.
    pub fn after(&mut self, step: &Step) {
        match step {
            Step::Route(changes) => {
                for (vector, message) in changes {
                    self.uncertain.remove(vector);
                    match message {
                        Some(message) => self.routed.insert(*vector, *message),
                        None => self.routed.remove(vector),
                    };
                }
            }
            Step::EnableEmpty => self.enabled = true,
            Step::Bind(vectors) => {
                self.enabled = true;
                self.bound.extend(vectors);
            }
            Step::Disable => {
                self.enabled = false;
                self.bound.clear();
            }
        }
    }

    /// What the host may be after a step failed.
    pub fn after_failure(&mut self, step: &Step) {
        if let Step::Route(changes) = step {
            self.uncertain.extend(changes.iter().map(|(vector, _)| vector));
        }
    }
}

#[cfg(test)]
mod tests;
