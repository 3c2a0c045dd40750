//! Where BARs go: largest first, each at a multiple of its size, so that nothing is lost between them.

use std::fmt;

use super::{Layout, LayoutError, PAGE};
use crate::AddressRange;

/// The address space of a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BarSpace {
    /// Memory, with a 32-bit register.
    Memory32,
    /// Memory, with a 64-bit register.
    Memory64,
    /// Ports.
    Io,
}

/// A BAR that needs a place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BarRequest {
    /// The function's name, for errors: its host address.
    pub function: String,
    /// The BAR's number.
    pub index: u8,
    /// Bytes, a power of two.
    pub size: u64,
    /// Its address space.
    pub space: BarSpace,
}

impl BarRequest {
    /// The BAR's size and alignment: its own, or a page so that no two functions share one (a page is the
    /// least that can be mapped into the guest).
    fn footprint(&self) -> u64 {
        let power = self.size.checked_next_power_of_two().unwrap_or(u64::MAX);
        match self.space {
            BarSpace::Io => power,
            BarSpace::Memory32 | BarSpace::Memory64 => power.max(PAGE),
        }
    }
}

impl fmt::Display for BarRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "BAR {} of {} ({:#x} bytes)",
            self.index, self.function, self.size
        )
    }
}

/// A BAR and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacedBar {
    /// What was asked for.
    pub request: BarRequest,
    /// Where it is.
    pub address: u64,
}

/// Bytes that all BARs of one space need together.
pub(super) fn need(bars: &[BarRequest], space: BarSpace) -> u64 {
    let sizes = of(bars, space).map(BarRequest::footprint);
    sizes.fold(0, u64::saturating_add)
}

/// Bytes of the largest BAR of one space.
pub(super) fn largest(bars: &[BarRequest], space: BarSpace) -> u64 {
    of(bars, space).map(BarRequest::footprint).max().unwrap_or(0)
}

fn of(bars: &[BarRequest], space: BarSpace) -> impl Iterator<Item = &BarRequest> {
    bars.iter().filter(move |bar| bar.space == space)
}

/// Places every BAR in the windows of `plan`.
pub(super) fn place(bars: &[BarRequest], plan: &Layout) -> Result<Vec<PlacedBar>, LayoutError> {
    let mut bars = bars.to_vec();
    bars.sort_by_key(|bar| std::cmp::Reverse(bar.footprint()));
    let mut plan = plan.clone();
    let (mut memory32, mut memory64, mut io) = (plan.mmio32, plan.mmio64, plan.io);
    for request in bars {
        let (window, free) = match request.space {
            BarSpace::Io => ("the port window", &mut io),
            // A 64-bit BAR may hold a 32-bit address, not the other way round.
            BarSpace::Memory64 if !plan.mmio64.is_empty() => ("the 64-bit window", &mut memory64),
            BarSpace::Memory64 | BarSpace::Memory32 => ("the 32-bit window", &mut memory32),
        };
        let footprint = request.footprint();
        let place = free.aligned(footprint);
        if place.size < footprint {
            let why = format!("{window} has only {:#x} bytes left", free.size);
            return Err(LayoutError::new(request, why, &plan));
        }
        *free = AddressRange::between(place.start.saturating_add(footprint), free.end());
        plan.bars.push(PlacedBar {
            request,
            address: place.start,
        });
    }
    Ok(plan.bars)
}
