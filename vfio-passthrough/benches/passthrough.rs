//! Measures the library itself, without an IOMMU: on the model, and on a real KVM for routing.
//!
//! Run it with `cargo bench -p vfio-passthrough`. A device of the model keeps its registers in a
//! file, so each access of the device adds one `pread` or `pwrite`.
#![allow(
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    missing_docs,
    reason = "a bench that fails panics; criterion's macros document nothing"
)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use kvm_ioctls::Kvm;
use vfio_passthrough::backend::IrqFlags;
use vfio_passthrough::host::{MsiMessage, MsiVectors};
use vfio_passthrough::irq::plan::{BoundState, Growth, plan};
use vfio_passthrough::kvm::{DeferredRoutes, KvmHost};
use vfio_passthrough::model::{Faults, Guest, PciDevice};
use vfio_passthrough::pci::message::ProgrammedVectors;
use vfio_passthrough::{BarIndex, PassthroughFunction, ResetPolicy};

/// The number of vectors of QEMU's NVMe, of eight NICs with 65 each, and the most that a function
/// can have.
const VECTORS: [u16; 3] = [64, 520, 2048];

/// The numbers of vectors whose routes are committed. Small devices are among them.
const ROUTED: [u16; 5] = [1, 3, 64, 520, 2048];

const VENDOR: u16 = 0x00;
const STATUS: u16 = 0x06;
const BAR0: u16 = 0x10;
const MSIX_CONTROL: u16 = 0x42;
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// The table's offset in devices of [`PciDevice::with_interrupts`].
const TABLE: u64 = 0x1_0000;

fn function(vectors: u16) -> PassthroughFunction {
    let faults = Arc::new(Faults::default());
    let msix = Some((vectors, IrqFlags::EVENTFD));
    let device = PciDevice::with_interrupts(faults.clone(), None, msix).unwrap();
    let (address, host) = ("01:00.0".parse().unwrap(), Guest::new(faults).services());
    PassthroughFunction::new(address, Arc::new(device), &host, ResetPolicy::Required).unwrap()
}

fn config(criterion: &mut Criterion) {
    let function = function(64);
    let mut group = criterion.benchmark_group("config");
    for (name, offset) in [("read, emulated", VENDOR), ("read, forwarded", STATUS)] {
        group.bench_function(name, |bencher| {
            let mut data = [0; 2];
            bencher.iter(|| function.config_read(black_box(offset), &mut data));
        });
    }
    group.bench_function("write, a BAR that is sized and put back", |bencher| {
        bencher.iter(|| {
            let _ = function.config_write(BAR0, &[0xff; 4]);
            let _ = function.config_write(BAR0, black_box(&[0, 0, 0, 0xe0]));
        });
    });
    group.finish();
}

/// The guest writes to an entry while the function is masked, and to an entry's mask while it is
/// not.
fn msix_table(criterion: &mut Criterion) {
    let bar = BarIndex::new(0).unwrap();
    let mut group = criterion.benchmark_group("MSI-X table write");
    for vectors in VECTORS {
        let function = function(vectors);
        let control = |value: u16| function.config_write(MSIX_CONTROL, &value.to_le_bytes());
        let _ = control(ENABLE | FUNCTION_MASK);
        group.bench_function(BenchmarkId::new("function masked", vectors), |bencher| {
            let mut data = 0u32;
            bencher.iter(|| {
                data = data.wrapping_add(1);
                function.bar_write(bar, TABLE + 8, &data.to_le_bytes());
            });
        });
        for vector in 0..u64::from(vectors) {
            function.bar_write(bar, TABLE + vector * 16, &0xfee0_0000_u64.to_le_bytes());
            function.bar_write(bar, TABLE + vector * 16 + 12, &[0; 4]);
        }
        let _ = control(ENABLE);
        group.bench_function(BenchmarkId::new("mask and unmask, all in use", vectors), |bencher| {
            bencher.iter(|| {
                function.bar_write(bar, TABLE + 12, &[1, 0, 0, 0]);
                function.bar_write(bar, TABLE + 12, &[0; 4]);
            });
        });
    }
    group.finish();
}

fn messages(vectors: u16) -> BTreeMap<u16, MsiMessage> {
    let message = |vector| MsiMessage { address: 0xfee0_0000, data: vector };
    (0..vectors).map(|vector| (vector, message(vector.into()))).collect()
}

/// Plans the step from no vector to all vectors. A driver's start needs it.
fn plans(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("plan");
    for vectors in VECTORS {
        let wanted = ProgrammedVectors { enabled: true, vectors, unmasked: messages(vectors) };
        let host = BoundState::default();
        group.bench_function(BenchmarkId::from_parameter(vectors), |bencher| {
            bencher.iter(|| plan(black_box(&wanted), &host, Growth::Dynamic));
        });
    }
    group.finish();
}

/// A VM's routes, and the vectors of one function. Their eventfds exist, and none is delivered.
struct Routed {
    vectors: Box<dyn MsiVectors>,
    messages: Vec<(u16, Option<MsiMessage>)>,
    deferring: Option<DeferredRoutes>,
    host: KvmHost,
}

impl Routed {
    fn new(vectors: u16, deferred: bool) -> Self {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        let host = KvmHost::new(Arc::new(vm), 0..1, 24..4096);
        let mut routed = Self {
            vectors: host.services().msi.allocate(vectors).unwrap(),
            messages: messages(vectors).into_iter().map(|(v, m)| (v, Some(m))).collect(),
            deferring: deferred.then(|| host.router().defer_routes().unwrap()),
            host,
        };
        (0..vectors).for_each(|vector| drop(routed.vectors.trigger(vector).unwrap()));
        routed
    }

    fn together(&mut self) {
        self.vectors.update(&self.messages).unwrap();
    }

    fn one_by_one(&mut self) {
        let mut each = self.messages.chunks(1);
        each.try_for_each(|change| self.vectors.update(change)).unwrap();
    }

    /// Each vector fires before the next one is unmasked, so no route is deferred for long.
    fn one_by_one_in_use(&mut self) {
        for (vector, message) in &self.messages {
            self.vectors.update(&[(*vector, *message)]).unwrap();
            self.vectors.trigger(*vector).unwrap().write(1).unwrap();
            self.deferring.iter().for_each(DeferredRoutes::flush);
        }
    }
}

/// A way to deliver all vectors.
type Way = fn(&mut Routed);

/// Delivers all vectors of a function for the first time: with one commit of the routing table,
/// with one commit for each vector, and with deferred commits. Each way attaches one irqfd for each
/// vector.
fn routing(criterion: &mut Criterion) {
    if Kvm::new().and_then(|kvm| kvm.create_vm()).is_err() {
        return eprintln!("routing was not measured: /dev/kvm does not open here");
    }
    let ways: [(&str, bool, Way); 4] = [
        ("together", false, Routed::together),
        ("one by one", false, Routed::one_by_one),
        ("one by one, deferred", true, Routed::one_by_one),
        ("one by one, in use, deferred", true, Routed::one_by_one_in_use),
    ];
    let mut group = criterion.benchmark_group("routing");
    group.sample_size(10);
    for vectors in ROUTED {
        for (name, deferred, way) in ways {
            let setup = || Routed::new(vectors, deferred);
            let mut routed = setup();
            way(&mut routed);
            let calls = routed.host.calls();
            let (commits, irqfds) = (calls.set_gsi_routing.value(), calls.irqfd.value());
            println!(
                "{name}, {vectors} vectors: {commits} KVM_SET_GSI_ROUTING, {irqfds} KVM_IRQFD"
            );
            group.bench_function(BenchmarkId::new(name, vectors), |bencher| {
                bencher.iter_batched_ref(setup, way, BatchSize::PerIteration);
            });
        }
    }
    group.finish();
}

/// Makes a function of an open device and drops it: config space is read and BARs are mapped, and
/// at the end everything is removed and the device is reset.
fn attach(criterion: &mut Criterion) {
    let faults = Arc::new(Faults::default());
    let device = Arc::new(PciDevice::nvme(faults.clone(), IrqFlags::EVENTFD).unwrap());
    let host = Guest::new(faults).services();
    let address = "01:00.0".parse().unwrap();
    criterion.bench_function("attach and shutdown", |bencher| {
        bencher.iter(|| {
            PassthroughFunction::new(address, device.clone(), &host, ResetPolicy::Required).unwrap()
        });
    });
}

criterion_group!(benches, config, msix_table, plans, routing, attach);
criterion_main!(benches);
