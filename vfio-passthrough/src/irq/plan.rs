//! Computes the steps that bind and route the interrupts that the guest programmed. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::pci::message::{MsiMessage, ProgrammedVectors};

/// The state of MSI or MSI-X in the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoundState {
    /// The index is enabled in VFIO.
    pub enabled: bool,
    /// The number of vectors that the guest had programmed when the index was enabled. Fewer are
    /// bound if the host had fewer.
    pub asked: u16,
    /// The vectors whose eventfds are bound. They stay bound while the index is enabled: a masked
    /// vector's eventfd collects interrupts.
    pub bound: BTreeSet<u16>,
    /// The messages of the vectors that are routed to the guest.
    pub routed: BTreeMap<u16, MsiMessage>,
    /// The vectors that a failed step may have left routed or not. The next plan routes or stops
    /// them again.
    pub uncertain: BTreeSet<u16>,
}

/// Whether VFIO can add vectors to an enabled index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Vectors can be added at any time (MSI-X since Linux 6.5).
    Dynamic,
    /// Vectors cannot be added (`VFIO_IRQ_INFO_NORESIZE`, linux/vfio.h, and MSI). All are bound at
    /// enable: to disable the index and enable it with more vectors would lose interrupts.
    Fixed,
}

/// The number of vectors for which the host has enough, as an error shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Had {
    /// This number.
    Known(usize),
    /// Fewer than were asked for. On x86, the CPUs' vectors are allocated last, and the kernel
    /// reports no number if they run out (request_irq in vfio_msi_set_vector_signal).
    Unknown,
}

/// A step in the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Route vectors to the guest (`Some`), or stop their routes (`None`), in one batch.
    Route(Vec<(u16, Option<MsiMessage>)>),
    /// Enable the index without any vector. The function then sets pending bits instead of
    /// signalling.
    EnableEmpty,
    /// Bind the eventfds of these vectors in one call, and enable the index if it is disabled. The
    /// vectors ascend, and no vector between them is bound.
    Bind(Vec<u16>),
    /// Disable the index, which unbinds all vectors.
    Disable,
}

/// The steps from the state `host` to the state that the guest programmed. There are none if they
/// agree.
///
/// A vector is routed before it is bound, and its route stops before the index is disabled: so no
/// interrupt is lost. Stops are a batch of their own, so that they are carried out even if a route
/// fails.
pub fn plan(wanted: &ProgrammedVectors, host: &BoundState, growth: Growth) -> Vec<Step> {
    let (stops, starts) = changes(&wanted.unmasked, host);
    let route = |changes: Vec<_>| (!changes.is_empty()).then_some(Step::Route(changes));
    let mut steps: Vec<Step> = route(stops).into_iter().collect();
    // The guest changed the number of vectors while the index is enabled: it is disabled and
    // enabled again.
    let stale = growth == Growth::Fixed && host.asked != wanted.vectors;
    if host.enabled && (!wanted.enabled || stale) {
        steps.push(Step::Disable);
    }
    if wanted.enabled {
        steps.extend(route(starts));
        steps.extend(binding(wanted, host, growth, !host.enabled || stale));
    }
    steps
}

/// The steps after the guest changed one vector while the index is enabled and all other vectors
/// agree: those of [`plan`], in a time that does not grow with the number of vectors. `wanted` has
/// no other vector.
pub fn plan_one(
    wanted: &ProgrammedVectors,
    vector: u16,
    host: &BoundState,
    growth: Growth,
) -> Vec<Step> {
    plan(wanted, &host.only(vector), growth)
}

/// The steps that bind missing vectors. `fresh`: the index is disabled.
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
    // The call that enables MSI-X allocates host vectors up to the last one it binds
    // (vfio_msi_enable). So it binds none, unless it binds all up to the last.
    let gapless = missing.iter().zip(0..).all(|(vector, index)| *vector == index);
    let empty = fresh && (missing.is_empty() || !gapless);
    let first = empty.then_some(Step::EnableEmpty);
    first.into_iter().chain(groups(&missing, &host.bound)).collect()
}

/// A batch for `MsiVectors::update`.
type Changes = Vec<(u16, Option<MsiMessage>)>;

/// The vectors whose routes stop, and the vectors whose routes are new or have a new message.
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

/// Splits ascending vectors at each bound vector between them. A call spans all vectors from its
/// first to its last: without an eventfd it does nothing to an unbound vector, but it unbinds a
/// bound one (vfio_msi_set_vector_signal).
fn groups(vectors: &[u16], bound: &BTreeSet<u16>) -> Vec<Step> {
    vectors
        .chunk_by(|one, next| bound.range(*one..*next).next().is_none())
        .map(|group| Step::Bind(group.to_vec()))
        .collect()
}

/// The steps that replace a step for which the host has too little: too few vectors, GSIs or
/// files. There are none if nothing smaller can be tried.
///
/// An index is enabled with what the host has, or with half of the vectors if that is unknown.
/// Vectors and routes that are added are tried in two halves, so that one that is refused does not
/// take others with it.
pub fn fewer(step: &Step, had: Had, host: &BoundState, growth: Growth) -> Vec<Step> {
    match step {
        Step::Bind(vectors) => match (host.enabled, had, growth) {
            (false, Had::Known(had), _) => first(vectors, had),
            (false, Had::Unknown, Growth::Fixed) => first(vectors, vectors.len() / 2),
            _ => halves(vectors, Step::Bind),
        },
        Step::Route(changes) => halves(changes, Step::Route),
        Step::EnableEmpty | Step::Disable => Vec::new(),
    }
}

/// The step that binds the first `count` vectors only. There is none if these are all or none.
fn first(vectors: &[u16], count: usize) -> Vec<Step> {
    let some = vectors.get(..count).filter(|_| (1..vectors.len()).contains(&count));
    some.map(|some| Step::Bind(some.to_vec())).into_iter().collect()
}

/// Two steps with half of the items each. There are none if there is only one item.
fn halves<T: Clone>(items: &[T], step: impl Fn(Vec<T>) -> Step) -> Vec<Step> {
    match items.split_at(items.len() / 2) {
        ([], _) => Vec::new(),
        (one, other) => vec![step(one.to_vec()), step(other.to_vec())],
    }
}

impl BoundState {
    /// The state as if there were no other vector.
    fn only(&self, vector: u16) -> Self {
        let routed = self.routed.get(&vector).map(|message| (vector, *message));
        Self {
            enabled: self.enabled,
            asked: self.asked,
            bound: self.bound.get(&vector).copied().into_iter().collect(),
            routed: routed.into_iter().collect(),
            uncertain: self.uncertain.get(&vector).copied().into_iter().collect(),
        }
    }

    /// Whether all that the guest programmed is bound and routed.
    pub fn is_complete(&self, wanted: &ProgrammedVectors) -> bool {
        let has = |(vector, message)| {
            self.bound.contains(vector) && self.routed.get(vector) == Some(message)
        };
        self.enabled == wanted.enabled && wanted.unmasked.iter().all(has)
    }

    /// Updates the state after a step succeeded.
    pub fn after(&mut self, step: &Step, wanted: &ProgrammedVectors) {
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
            Step::EnableEmpty => self.enable(wanted),
            Step::Bind(vectors) => {
                self.enable(wanted);
                self.bound.extend(vectors);
            }
            Step::Disable => {
                self.enabled = false;
                self.asked = 0;
                self.bound.clear();
            }
        }
    }

    /// Makes the next plan ask for all vectors again, if fewer are bound than the guest asked for.
    /// Where VFIO cannot add vectors, that plan disables the index, and what fires meanwhile is
    /// lost. So this is for a guest that enables the index again.
    pub fn ask_again(&mut self) {
        if self.bound.len() < self.asked.into() {
            self.asked = 0;
        }
    }

    fn enable(&mut self, wanted: &ProgrammedVectors) {
        if !self.enabled {
            (self.enabled, self.asked) = (true, wanted.vectors);
        }
    }

    /// Updates the state after a step failed.
    pub fn after_failure(&mut self, step: &Step) {
        if let Step::Route(changes) = step {
            self.uncertain.extend(changes.iter().map(|(vector, _)| vector));
        }
    }
}

#[cfg(test)]
mod tests;
