//! A guest on the model: its RAM, its devices and their vectors. It counts the calls, and stops
//! where the kernel has a limit.

use std::collections::BTreeSet;
use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vfio_passthrough::backend::IrqFlags;
use vfio_passthrough::dma::Mapping;
use vfio_passthrough::host::{
    HostMemory, MemorySlot, MemorySlots, MsiMessage, MsiRouter, MsiVectors,
};
use vfio_passthrough::model::{Call, Faults, Guest, Iommu, PciDevice};
use vfio_passthrough::{BarIndex, DmaSpace, Iova, PassthroughFunction, ResetPolicy, VmmServices};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// The user's memory slots of a VM on x86 (`KVM_CAP_NR_MEMSLOTS`, 5.12 and later).
pub const SLOTS: u64 = 32764;
/// The routes of a VM (`KVM_CAP_IRQ_ROUTING`), without the 40 of the pins of an x86 VM.
pub const ROUTES: u64 = 4096 - 40;
/// The mappings of a type1 container (`dma_entry_limit` of vfio_iommu_type1).
pub const MAPPINGS: usize = 65535;

/// The address bits of guest and IOMMU.
const ADDRESS_BITS: u32 = 52;
/// The address of the first BAR.
const BARS: u64 = 1 << 48;
/// The distance of the BARs: the size of a BAR of [`PciDevice::with_interrupts`].
const BAR_SIZE: u64 = 0x2_0000;

const COMMAND: u16 = 0x04;
const BAR0: u16 = 0x10;
const MSIX_CONTROL: u16 = 0x42;
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// The table's offset in BAR0.
const TABLE: u64 = 0x1_0000;

/// How the VMM has the guest's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ram {
    /// In pieces of this size. Each begins in the process where the one before ends.
    Adjacent(NonZeroU64),
    /// In pieces of this size that are apart in the process.
    Apart(NonZeroU64),
}

/// How the guest's driver unmasks vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmask {
    /// All by the mask bit of the function.
    Together,
    /// Each by its own mask bit, as Linux does when a driver requests an interrupt.
    Each,
}

/// The calls and the objects in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// `VFIO_IOMMU_MAP_DMA`.
    pub map_calls: u64,
    /// Mappings in the container.
    pub mappings: u64,
    /// Memory slots that KVM has.
    pub slots: u64,
    /// All other calls: of devices and of the VMM's services.
    pub other_calls: u64,
    /// `KVM_SET_GSI_ROUTING`.
    pub commits: u64,
    /// Routes that KVM has. Each has an irqfd.
    pub routes: u64,
    /// Eventfds of vectors.
    pub eventfds: u64,
    /// The refusals that the VMM saw.
    pub refused: Vec<String>,
}

/// A guest and what it holds.
pub struct Simulation {
    faults: Arc<Faults>,
    iommu: Arc<Iommu>,
    dma: DmaSpace,
    slots: Arc<Limited>,
    router: Router,
    functions: Vec<PassthroughFunction>,
    mappings: Vec<Mapping>,
    ram: Vec<MemorySlot>,
    refused: Vec<String>,
}

impl Simulation {
    /// A guest without RAM and devices.
    pub fn new() -> Self {
        let faults = Arc::new(Faults::default());
        let iommu = Iommu::new(faults.clone()).with_address_bits(ADDRESS_BITS);
        let iommu = Arc::new(iommu.with_limit(MAPPINGS));
        let guest = Guest::new(faults.clone()).services();
        Self {
            dma: DmaSpace::new(iommu.clone()),
            iommu,
            faults,
            slots: Arc::new(Limited { inner: guest.slots, used: AtomicU64::new(0) }),
            router: Router::default(),
            functions: Vec::new(),
            mappings: Vec::new(),
            ram: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// Maps RAM of `size` bytes for the devices and places it in the guest. The part below 4 GiB
    /// has a hole from 3 GiB on.
    pub fn with_ram(mut self, size: u64, ram: Ram) -> Self {
        let pieces = pieces(size, ram);
        match self.dma.map_all(pieces.iter().cloned()) {
            Ok(mappings) => self.mappings = mappings,
            Err(error) => self.refused.push(error.to_string()),
        }
        // A VMM has one slot for what is adjacent, as the DMA space has one mapping.
        let slots: Arc<dyn MemorySlots> = self.slots.clone();
        let pieces = match ram {
            Ram::Adjacent(_) => whole(&pieces),
            Ram::Apart(_) => pieces,
        };
        for (iova, piece) in pieces {
            match slots.place(iova.0, piece) {
                Ok(slot) => self.ram.push(slot),
                Err(error) => {
                    self.refused.push(format!("slot {}: {error}", self.ram.len()));
                    break;
                }
            }
        }
        self
    }

    /// Assigns devices with this number of vectors. The guest enables each, programs its vectors
    /// and unmasks them.
    pub fn with_devices(mut self, count: u64, vectors: u16, unmask: Unmask) -> Self {
        for number in 0..count {
            let function = self.function(vectors);
            start(&function, BARS + number * BAR_SIZE, vectors, unmask);
            self.functions.push(function);
        }
        self
    }

    fn function(&self, vectors: u16) -> PassthroughFunction {
        let msix = Some((vectors, IrqFlags::EVENTFD));
        let device = PciDevice::with_interrupts(self.faults.clone(), None, msix).unwrap();
        let address = "01:00.0".parse().unwrap();
        let services = VmmServices {
            slots: self.slots.clone(),
            msi: Arc::new(self.router.clone()),
            intx: None,
            p2p: Some(self.dma.clone()),
        };
        PassthroughFunction::new(address, Arc::new(device), &services, ResetPolicy::Required)
            .unwrap()
    }

    /// What was called so far, and what the kernel has.
    pub fn counts(&self) -> Counts {
        let made = |call| self.faults.made(call);
        let map_calls = made(Call::MapDma);
        Counts {
            map_calls,
            mappings: self.iommu.mappings().len() as u64,
            slots: self.slots.used.load(Ordering::Relaxed),
            other_calls: self.faults.all_made() - map_calls,
            commits: self.router.0.commits.load(Ordering::Relaxed),
            routes: self.router.0.routes.load(Ordering::Relaxed),
            eventfds: self.router.0.eventfds.load(Ordering::Relaxed),
            refused: self.refused.clone(),
        }
    }
}

/// The guest's driver: places BAR0, enables decoding and bus mastering, programs all vectors, and
/// unmasks them.
fn start(function: &PassthroughFunction, address: u64, vectors: u16, unmask: Unmask) {
    let [low, high] = [address as u32, (address >> 32) as u32];
    let _ = function.config_write(BAR0, &low.to_le_bytes());
    let _ = function.config_write(BAR0 + 4, &high.to_le_bytes());
    let _ = function.config_write(COMMAND, &6_u16.to_le_bytes());
    let control = |value: u16| drop(function.config_write(MSIX_CONTROL, &value.to_le_bytes()));
    let bar = BarIndex::new(0).unwrap();
    let entries = || (0..u64::from(vectors)).map(|vector| (TABLE + vector * 16, vector as u32));
    let unmask_all = || {
        for (entry, _) in entries() {
            function.bar_write(bar, entry + 12, &[0; 4]);
        }
    };
    control(ENABLE | FUNCTION_MASK);
    for (entry, vector) in entries() {
        function.bar_write(bar, entry, &0xfee0_0000_u64.to_le_bytes());
        function.bar_write(bar, entry + 8, &vector.to_le_bytes());
    }
    if unmask == Unmask::Together {
        unmask_all();
    }
    control(ENABLE);
    if unmask == Unmask::Each {
        unmask_all();
    }
}

/// A piece of reserved memory, which has no pages.
#[derive(Clone)]
struct Piece {
    reserved: Arc<GuestRegionMmap>,
    offset: u64,
    size: u64,
}

// SAFETY: the bytes belong to a region, which the value holds and which fulfils the same contract.
unsafe impl HostMemory for Piece {
    fn host_address(&self) -> *mut u8 {
        self.reserved.as_ptr().wrapping_add(self.offset as usize)
    }

    fn size(&self) -> u64 {
        self.size
    }
}

fn reserve(size: u64) -> Arc<GuestRegionMmap> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let builder = MmapRegionBuilder::new(size as usize).with_mmap_flags(flags);
    let region = builder.with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE).build().unwrap();
    Arc::new(GuestRegionMmap::new(region, GuestAddress(0)).unwrap())
}

/// Memory of the guest, with its address.
type Pieces = Vec<(Iova, Arc<dyn HostMemory>)>;

/// The pieces of the guest's RAM.
fn pieces(size: u64, ram: Ram) -> Pieces {
    let (Ram::Adjacent(piece) | Ram::Apart(piece)) = ram;
    let piece = piece.get();
    let distance = match ram {
        Ram::Adjacent(_) => piece,
        Ram::Apart(_) => 2 * piece,
    };
    let reserved = reserve(size / piece * distance);
    let at = |number: u64| {
        let (offset, ram) = (number * distance, number * piece);
        let memory = Piece { reserved: reserved.clone(), offset, size: piece };
        (Iova(ram + if ram < 3 << 30 { 0 } else { 1 << 30 }), Arc::new(memory) as _)
    };
    (0..size / piece).map(at).collect()
}

/// The two regions below and above the hole, for memory slots.
fn whole(pieces: &Pieces) -> Pieces {
    let mut regions: Vec<(Iova, u64)> = Vec::new();
    for (iova, piece) in pieces {
        match regions.last_mut().filter(|(start, size)| start.0 + *size == iova.0) {
            Some((_, size)) => *size += piece.size(),
            None => regions.push((*iova, piece.size())),
        }
    }
    let region = |(iova, size)| {
        let memory = Piece { reserved: reserve(size), offset: 0, size };
        (iova, Arc::new(memory) as Arc<dyn HostMemory>)
    };
    regions.into_iter().map(region).collect()
}

/// Memory slots, of which there are as many as KVM has.
struct Limited {
    inner: Arc<dyn MemorySlots>,
    used: AtomicU64,
}

impl MemorySlots for Limited {
    unsafe fn map(&self, gpa: u64, memory: &dyn HostMemory) -> io::Result<u32> {
        if self.used.load(Ordering::Relaxed) >= SLOTS {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        // SAFETY: the caller keeps the same contract.
        let number = unsafe { self.inner.map(gpa, memory) }?;
        self.used.fetch_add(1, Ordering::Relaxed);
        Ok(number)
    }

    fn unmap(&self, number: u32, gpa: u64, memory: &dyn HostMemory) -> io::Result<()> {
        self.inner.unmap(number, gpa, memory)?;
        self.used.fetch_sub(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A router like `KvmRouter`, without KVM: a vector takes a route when it is first delivered, and
/// a batch with new routes is one commit.
#[derive(Clone, Default)]
struct Router(Arc<Routed>);

#[derive(Default)]
struct Routed {
    routes: AtomicU64,
    eventfds: AtomicU64,
    commits: AtomicU64,
}

impl MsiRouter for Router {
    fn allocate(&self, _: u16) -> io::Result<Box<dyn MsiVectors>> {
        // One eventfd for all: a process may not have as many files as 64 devices have vectors.
        let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let (used, own) = (BTreeSet::new(), BTreeSet::new());
        Ok(Box::new(Vectors { all: self.0.clone(), eventfd, used, own }))
    }
}

/// The vectors of one device.
struct Vectors {
    all: Arc<Routed>,
    eventfd: Arc<EventFd>,
    /// Those whose eventfd was asked for.
    used: BTreeSet<u16>,
    /// Those that have a route.
    own: BTreeSet<u16>,
}

impl MsiVectors for Vectors {
    fn trigger(&mut self, vector: u16) -> io::Result<Arc<EventFd>> {
        if self.used.insert(vector) {
            self.all.eventfds.fetch_add(1, Ordering::Relaxed);
        }
        Ok(self.eventfd.clone())
    }

    fn update(&mut self, changes: &[(u16, Option<MsiMessage>)]) -> io::Result<()> {
        let starting = changes.iter().filter(|(_, message)| message.is_some());
        let starting = starting.map(|(vector, _)| *vector);
        let new: Vec<u16> = starting.filter(|vector| !self.own.contains(vector)).collect();
        let routes = self.all.routes.load(Ordering::Relaxed) + new.len() as u64;
        if routes > ROUTES {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if !new.is_empty() {
            self.all.commits.fetch_add(1, Ordering::Relaxed);
            self.all.routes.store(routes, Ordering::Relaxed);
            self.own.extend(new);
        }
        Ok(())
    }
}
