//! vCPUs access a function and it does DMA, while it is reset and shut down or detached. The
//! function ends, nothing panics, and nothing is held.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test that fails panics"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use vfio_passthrough::backend::IrqFlags;
use vfio_passthrough::model::{Fault, Faults, Guest, Iommu, Ledger, PciDevice};
use vfio_passthrough::{BarIndex, DmaSpace, Iova, PassthroughFunction, ResetPolicy, Space};
use vm_memory::{GuestAddress, GuestRegionMmap};

const ROUNDS: u64 = 40;
/// The steps of each vCPU before the function's end, and those after it.
const STEPS: u64 = 400;
const CPUS: u64 = 4;
const TABLE: u64 = 0x2000;
const PBA: u64 = 0x3000;

/// Knuth's MMIX generator. Each vCPU has its own order of accesses, which is the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// A random access of a guest.
fn access(function: &PassthroughFunction, random: &mut Random) {
    let bar0 = BarIndex::new(0).unwrap();
    let vector = random.next(4);
    let mut data = [0; 4];
    match random.next(12) {
        0 => drop(
            function.config_write(4, &[[0, 0], [2, 0], [6, 0], [6, 4]][random.next(4) as usize]),
        ),
        1 => drop(
            function
                .config_write(0x10, &(0xe000_0000 + (random.next(4) << 20) as u32).to_le_bytes()),
        ),
        2 => drop(
            function.config_write(0x42, &[[0, 0], [0, 0x80], [0, 0xc0]][random.next(3) as usize]),
        ),
        3 => drop(function.config_write(0x64, &[[0, 0], [3, 0]][random.next(2) as usize])),
        4 => function.config_read((random.next(64) * 4) as u16, &mut data),
        5 | 6 => {
            let (at, value) = (TABLE + vector * 16 + 12, random.next(2) as u32);
            let _ = function.bar_write(bar0, at, &value.to_le_bytes());
        }
        7 => {
            let (at, value) = (TABLE + vector * 16 + 8, random.next(9) as u32);
            let _ = function.bar_write(bar0, at, &value.to_le_bytes());
        }
        8 => function.bar_read(bar0, PBA, &mut data),
        9 => function.bar_read(bar0, random.next(0x2000) & !3, &mut data),
        10 => drop(function.decode(Space::Memory, 0xe000_0000 + random.next(0x40_0000))),
        _ => drop(function.retry_placement()),
    }
}

/// The device fires, and does DMA while bus mastering is on: never after the function has ended and
/// its memory is unmapped. Calls fail meanwhile if there are `faults`.
fn hardware(
    device: &PciDevice,
    iommu: &Iommu,
    gone: &AtomicBool,
    mut random: Random,
    faults: Option<&Faults>,
) {
    while !gone.load(Ordering::Relaxed) {
        device.raise(random.next(4) as u16).unwrap();
        device.assert_pin(random.next(2) == 0).unwrap();
        device.resample().unwrap();
        let _ = device.dma_write(iommu, Iova(random.next(0x1000) & !3), &[7; 4]);
        if let Some(faults) = faults {
            faults.inject(random.next(20)..20, Fault::Errno(libc::EIO));
        }
    }
    if let Some(faults) = faults {
        faults.clear();
    }
}

/// The function ends while a guest uses it. If `failing`, calls fail meanwhile. Returns the number
/// of accesses.
fn round(seed: u64, flags: IrqFlags, failing: bool) -> u64 {
    let faults = Arc::new(Faults::default());
    let device = Arc::new(PciDevice::nvme(faults.clone(), flags).unwrap());
    let (iommu, guest) = (Arc::new(Iommu::new(faults.clone())), Guest::new(faults.clone()));
    let memory = GuestRegionMmap::<()>::from_range(GuestAddress(0), 0x1000, None).unwrap();
    let mapping = DmaSpace::new(iommu.clone()).map(Iova(0), Arc::new(memory)).unwrap();
    let address = "01:00.0".parse().unwrap();
    let function =
        PassthroughFunction::new(address, device.clone(), &guest.services(), ResetPolicy::Required)
            .unwrap();
    let (done, gone) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for cpu in 0..CPUS {
            let (function, done, gone) = (&function, &done, &gone);
            scope.spawn(move || {
                let mut random = Random(seed * CPUS + cpu);
                let mut after = 0;
                while after < STEPS {
                    access(function, &mut random);
                    done.fetch_add(1, Ordering::Relaxed);
                    after += u64::from(gone.load(Ordering::Relaxed));
                }
            });
        }
        scope.spawn(|| hardware(&device, &iommu, &gone, Random(seed), failing.then_some(&*faults)));
        while done.load(Ordering::Relaxed) < STEPS * CPUS / 2 {
            thread::yield_now();
        }
        // The other thread injects the failures.
        let (_, reset) = function.reset();
        assert!(failing || reset.is_ok(), "{reset:?}");
        while done.load(Ordering::Relaxed) < STEPS * CPUS {
            thread::yield_now();
        }
        let shut = match seed % 8 < 4 {
            true => function.shutdown(),
            false => function.recover().1.and(function.detach().1),
        };
        assert!(failing || shut.is_ok(), "{shut:?}");
        drop(mapping);
        gone.store(true, Ordering::Relaxed);
    });
    check_gone(seed, function, &device, &Ledger::of(&iommu, &device, &guest), failing);
    done.into_inner()
}

/// Checks that a function that has ended answers nothing and holds nothing.
fn check_gone(
    seed: u64,
    function: PassthroughFunction,
    device: &Arc<PciDevice>,
    ledger: &Ledger,
    failing: bool,
) {
    let mut data = [0; 4];
    function.config_read(0, &mut data);
    assert_eq!(data, [0xff; 4], "seed {seed}: nothing answers");
    if !failing {
        assert_eq!(*ledger, Ledger::default(), "seed {seed}: shut down, and used since");
    }
    let detached = function.is_detached();
    assert_eq!(device.is_given_back(), detached, "seed {seed}: accesses hold nothing");
    drop(function);
    // Slots that could not be removed are leaked, and hold the device. If the device was detached,
    // they hold zeros instead of its memory.
    let leaked = if detached { 0 } else { ledger.slots.len() };
    assert_eq!(Arc::strong_count(device), 1 + leaked, "seed {seed}");
}

#[test]
fn resets_and_ends_a_function_while_vcpus_use_it() {
    let rounds = (0..ROUNDS).map(|seed| {
        let resize = if seed % 2 == 0 { IrqFlags::empty() } else { IrqFlags::NORESIZE };
        round(seed, IrqFlags::EVENTFD | resize, seed % 4 >= 2)
    });
    let accesses: u64 = rounds.sum();
    println!("{ROUNDS} rounds, {accesses} accesses");
    assert!(accesses >= ROUNDS * STEPS * CPUS * 2);
}
