//! Attach and detach: a function that is not made leaves nothing, and one that goes does so whatever fails.

use std::collections::BTreeSet;
use std::sync::Arc;

use vfio_passthrough::model::Ledger;

use super::guest::{BOOT, MSIX_AT_ONCE};
use super::setup::*;
use super::*;

const SHAPES: [Shape; 4] = [Shape::Dynamic, Shape::NoResize, Shape::BusReset, Shape::Nvme];

/// One call of attach fails. The errors that are returned name it; an area of a BAR that cannot be mapped is trapped,
/// which is logged.
fn attach(shape: Shape, call: u64, fault: Fault) -> Result<Option<Call>, String> {
    let parts = Parts::new(shape);
    lines::keep();
    parts.faults.inject(call..call + 1, fault);
    let mappings = map(&parts.iommu);
    let dma_failed = mappings.as_ref().err().map(ToString::to_string);
    let function = parts.attach();
    let error = function.as_ref().err().map(ToString::to_string);
    let failed = parts.faults.failed().first().copied();
    if let Some(failed) = failed {
        let whom = if dma_failed.is_some() { "" } else { NAME };
        let lines: Vec<_> = lines::taken().into_iter().chain(dma_failed).chain(error).collect();
        let told = lines.iter().any(|line| names(line, whom, failed, fault));
        // Not every device has events, and that is how VFIO says so.
        let no_event = (failed, fault) == (Call::IrqInfo, Fault::Errno(libc::EINVAL));
        let unheard = no_event && parts.device.heard() == 1;
        check(told || unheard, || format!("{failed:?} is not told: {lines:?}"))?;
        let goes_on = failed == Call::Mmap || whom.is_empty() || unheard;
        check(function.is_ok() == goes_on, || format!("{failed:?}: {lines:?}"))?;
    }
    drop((function, mappings));
    parts.faults.clear();
    let left = (parts.ledger(), parts.holders());
    check(left == Default::default(), || format!("{failed:?}: left: {left:?}"))?;
    let again = (map(&parts.iommu).is_ok(), parts.attach().is_ok());
    check(again == (true, true), || format!("{failed:?}: not again: {again:?}"))?;
    Ok(failed)
}

#[test]
fn a_function_that_cannot_be_attached_leaves_nothing() {
    let sweep_shape = |shape: Shape| {
        let parts = Parts::new(shape);
        let _mappings = map(&parts.iommu).unwrap();
        let _function = parts.attach().unwrap();
        let calls = parts.faults.all_made();
        sweep(&format!("attach, {shape:?}"), calls, |call, fault| attach(shape, call, fault))
    };
    let points: u64 = SHAPES.into_iter().map(sweep_shape).sum();
    println!("attach: {points} points");
    assert!(points > 830, "{points}");
}

/// A function that is in use, with interrupts of this kind.
fn in_use(shape: Shape, messages: bool) -> Setup {
    let with: &[&[Access]] = if messages { &[BOOT, MSIX_AT_ONCE] } else { &[BOOT] };
    Setup::new(shape, &with.concat())
}

/// One call of shutdown fails: it is returned, and everything goes all the same.
fn shutdown(shape: Shape, messages: bool, call: u64, fault: Fault) -> Result<Option<Call>, String> {
    let setup = in_use(shape, messages);
    lines::keep();
    setup.faults.inject(call..call + 1, fault);
    let error = setup.function.shutdown().err().map(|error| error.to_string());
    let failed = setup.faults.failed().first().copied();
    if let Some(failed) = failed {
        let told = error.as_ref().is_some_and(|error| names(error, NAME, failed, fault));
        check(told, || format!("{failed:?} is not told: {error:?}"))?;
    }
    let parts = setup.end();
    let left = (parts.ledger(), parts.holders());
    check(left == Default::default(), || format!("{failed:?}: left: {left:?}"))?;
    Ok(failed)
}

/// Functions in use, as they are detached.
fn uses() -> impl Iterator<Item = (Shape, bool)> {
    SHAPES.into_iter().flat_map(|shape| [(shape, false), (shape, true)])
}

fn calls_of_shutdown(shape: Shape, messages: bool) -> u64 {
    let setup = in_use(shape, messages);
    let before = setup.faults.all_made();
    setup.function.shutdown().unwrap();
    setup.faults.all_made() - before
}

#[test]
fn a_function_that_goes_does_so_whatever_fails_once() {
    let sweep_use = |(shape, messages)| {
        let calls = calls_of_shutdown(shape, messages);
        let name = format!("shutdown, {shape:?}, messages {messages}");
        sweep(&name, calls, |call, fault| shutdown(shape, messages, call, fault))
    };
    let points: u64 = uses().map(sweep_use).sum();
    println!("shutdown: {points} points");
    assert!(points > 380, "{points}");
}

/// Shuts a function down some of whose calls failed before and fail now, as if the device and the host had gone. What stays is the memory of slots
/// that were not taken away, and what VFIO has until the device is closed; a line tells of each.
pub fn lose(setup: Setup, fault: Fault) -> Result<Option<Call>, String> {
    let error = setup.function.shutdown().err().map(|error| error.to_string());
    let failed = setup.faults.failed().first().copied();
    let parts = setup.end();
    let lines = lines::taken();
    if let Some(failed) = failed {
        let told = lines.iter().chain(&error).any(|line| names(line, NAME, failed, fault));
        check(told, || format!("{failed:?} is not told: {error:?}, {lines:?}"))?;
    }
    let tells = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    let Ledger { mappings, slots, delivered, pins, interrupts, events, .. } = parts.ledger();
    let held = (delivered, pins);
    check(held == (0, 0), || format!("{failed:?}: left: {held:?}"))?;
    // An area may stay in both.
    let areas: BTreeSet<_> = slots.iter().chain(&mappings).collect();
    let stays = (areas.len(), slots.len(), mappings.len());
    let leaked = (parts.holders(), tells("the slot at "), tells("its memory is leaked"));
    check(leaked == stays, || {
        format!("{failed:?}: {slots:x?} and {mappings:x?} stay, leaked and told {leaked:?}")
    })?;
    let bound = interrupts.is_some();
    let closing = format!("{NAME}: ");
    let tells_bound = lines.iter().filter(|line| {
        line.starts_with(&closing) && line.contains(" stays bound until the device is closed: ")
    });
    let told = tells_bound.count() == usize::from(bound) + events;
    check(told, || format!("{failed:?}: bound {bound} and {events} events, told {lines:?}"))?;
    // Closed: nobody holds it, where no memory was leaked.
    let guest = parts.guest.clone();
    let closed = Arc::into_inner(parts.device).is_some();
    check(closed == areas.is_empty(), || format!("{failed:?}: closed {closed}, with {areas:x?}"))?;
    check(!closed || guest.triggers() == 0, || format!("{failed:?}: eventfds are left"))?;
    Ok(failed)
}

#[test]
fn a_function_whose_device_is_lost_leaks_what_cannot_be_undone_and_says_so() {
    let sweep_use = |(shape, messages)| {
        let calls = calls_of_shutdown(shape, messages);
        let name = format!("lost, {shape:?}, messages {messages}");
        sweep(&name, calls, |call, fault| {
            let setup = in_use(shape, messages);
            lines::keep();
            setup.faults.inject(call..u64::MAX, fault);
            lose(setup, fault)
        })
    };
    let points: u64 = uses().map(sweep_use).sum();
    println!("lost: {points} points");
    assert!(points > 380, "{points}");
}

/// One call of giving the device up fails, or that one and all after it: this is told, and the host has the device back.
/// Memory of slots that were not taken away is leaked, and is the device's no more.
fn give_up(
    shape: Shape,
    messages: bool,
    call: u64,
    until: u64,
    fault: Fault,
) -> Result<Option<Call>, String> {
    let setup = in_use(shape, messages);
    lines::keep();
    setup.faults.inject(call..until, fault);
    let error = setup.function.detach().1.err().map(|error| error.to_string());
    let failed = setup.faults.failed().first().copied();
    setup.faults.clear();
    check(setup.device.is_given_back(), || format!("{failed:?}: the host does not have it"))?;
    if let Some(failed) = failed {
        let told = error.as_ref().is_some_and(|error| names(error, NAME, failed, fault));
        check(told, || format!("{failed:?} is not told: {error:?}"))?;
    }
    let read = setup.perform(Access::BarRead(0))?;
    check(read == [0xff; 4], || format!("{failed:?}: reads {read:x?}"))?;
    let parts = setup.end();
    let Ledger { slots, mappings, .. } = parts.ledger();
    let lines = lines::taken();
    let tells = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    let (stay, told) =
        ((slots.len(), mappings.len()), (tells("the slot at "), tells("its memory is leaked")));
    check(stay == told && (stay == (0, 0) || until == u64::MAX), || {
        format!("{failed:?}: {slots:x?} and {mappings:x?} stay, {told:?} are told")
    })?;
    let left = Ledger { slots: Vec::new(), mappings: Vec::new(), ..parts.ledger() };
    check((left, parts.holders()) == Default::default(), || {
        format!("{failed:?}: left: {:?}", parts.ledger())
    })?;
    Ok(failed)
}

#[test]
fn a_device_that_the_host_asks_for_is_given_back_whatever_fails() {
    let sweep_use = |(shape, messages)| {
        let setup = in_use(shape, messages);
        let before = setup.faults.all_made();
        setup.function.detach().1.unwrap();
        let calls = setup.faults.all_made() - before;
        let name = format!("given up, {shape:?}, messages {messages}");
        let once =
            sweep(&name, calls, |call, fault| give_up(shape, messages, call, call + 1, fault));
        let lasting =
            sweep(&name, calls, |call, fault| give_up(shape, messages, call, u64::MAX, fault));
        once + lasting
    };
    let points: u64 = uses().map(sweep_use).sum();
    println!("given up: {points} points");
    assert!(points > 900, "{points}");
}
