//! Decides where assigned functions are on the guest's bus.
//!
//! Functions of one device of the host share a slot, so that drivers which look for the other
//! functions of their device find them: a GPU and its audio, for example. A virtual function
//! (SR-IOV) has a slot of its own: its number on the host comes from its physical function.

use std::collections::BTreeSet;

use devices::{DevFn, SLOTS};
use vfio_passthrough::PciAddress;

use crate::config::Place;
use crate::error::PlaceError;

/// The host bridge occupies slot 0.
const FIRST_SLOT: u8 = 1;

/// A function to place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// The address on the host.
    pub(crate) address: PciAddress,
    pub(crate) is_virtual: bool,
    /// The place that the user asked for.
    pub(crate) at: Option<Place>,
}

/// The place of each candidate, in their order. The slots `taken` have other functions.
pub(crate) fn places(
    candidates: &[Candidate],
    taken: impl IntoIterator<Item = u8>,
) -> Result<Vec<DevFn>, PlaceError> {
    let taken: BTreeSet<u8> = taken.into_iter().collect();
    let slots = slots(candidates, &taken)?;
    let placed: Vec<_> = candidates.iter().zip(slots).collect();
    let place = |(own, slot): &(&Candidate, u8)| {
        let function = function(own, *slot, &placed);
        DevFn::new(*slot, function).ok_or(PlaceError::Full(own.address))
    };
    let places = placed.iter().map(place).collect::<Result<Vec<_>, _>>()?;
    check(candidates, &places)?;
    Ok(places)
}

impl Candidate {
    /// Whether both are functions of one device of the host, with numbers that the device gave.
    fn is_sibling(&self, other: &Self) -> bool {
        let has_own_slot = self.is_virtual || other.is_virtual;
        let is_same = self.address.is_same_device(other.address);
        self.address == other.address || is_same && !has_own_slot
    }

    /// The function number that the user asked for.
    fn function(&self) -> Option<u8> {
        self.at.and_then(|place| place.function)
    }
}

/// The slot of each candidate: the one that it or a sibling asked for, otherwise the lowest that
/// nobody asked for.
fn slots(candidates: &[Candidate], taken: &BTreeSet<u8>) -> Result<Vec<u8>, PlaceError> {
    let asked = |own: &Candidate| own.at.map(|place| place.slot);
    let mut used: BTreeSet<u8> = candidates.iter().filter_map(asked).collect();
    if let Some((own, slot)) = candidates
        .iter()
        .find_map(|own| Some((own, asked(own)?)).filter(|(_, slot)| taken.contains(slot)))
    {
        return Err(PlaceError::SlotTaken { address: own.address, slot });
    }
    used.extend(taken);
    let mut slots: Vec<(Candidate, u8)> = Vec::with_capacity(candidates.len());
    for own in candidates {
        let is_sibling = |other: &&Candidate| own.is_sibling(other);
        let of_sibling = || candidates.iter().filter(is_sibling).find_map(asked);
        let placed =
            || slots.iter().find(|(other, _)| own.is_sibling(other)).map(|(_, slot)| *slot);
        let lowest = || (FIRST_SLOT..SLOTS).find(|slot| !used.contains(slot));
        let slot = asked(own).or_else(of_sibling).or_else(placed).or_else(lowest);
        let slot = slot.ok_or(PlaceError::Full(own.address))?;
        used.insert(slot);
        slots.push((*own, slot));
    }
    Ok(slots.into_iter().map(|(_, slot)| slot).collect())
}

/// The function number of `own`. Functions keep their numbers of the host. If none of a device's
/// functions in the slot would be function 0, the lowest becomes function 0.
fn function(own: &Candidate, slot: u8, placed: &[(&Candidate, u8)]) -> u8 {
    let number = own.address.function();
    let siblings = placed.iter().filter(|(other, at)| *at == slot && own.is_sibling(other));
    let numbers = siblings.clone().filter(|(other, _)| other.function().is_none());
    let lowest = numbers.map(|(other, _)| other.address.function()).min();
    let has_0 = siblings.into_iter().any(|(other, _)| other.function() == Some(0));
    match own.function() {
        Some(function) => function,
        None if lowest == Some(number) && !has_0 => 0,
        None => number,
    }
}

fn check(candidates: &[Candidate], places: &[DevFn]) -> Result<(), PlaceError> {
    let pairs = || candidates.iter().map(|own| own.address).zip(places.iter().copied());
    for (index, (second, place)) in pairs().enumerate() {
        if let Some((first, _)) = pairs().take(index).find(|(_, other)| *other == place) {
            return Err(PlaceError::Taken { place, first, second });
        }
    }
    for (address, place) in pairs() {
        if !pairs().any(|(_, other)| DevFn::of_slot(place.slot()) == Some(other)) {
            return Err(PlaceError::NoFunction0 { address, place });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
