//! The smallest VMM with an assigned device: a guest in real mode reads the first bytes of a BAR,
//! through a memory slot, so that the read does not leave the guest.
//!
//! ```console
//! # cargo run --features kvm --example minimal_vmm -- 0000:01:00.0
//! ```
//!
//! The device is bound to vfio-pci, and has a BAR in memory of at most 256 MiB, as most have.
#![allow(clippy::arithmetic_side_effects, reason = "a program that overflows fails")]

use std::env;
use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;
use std::sync::Arc;

use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vfio_passthrough::backend::Device;
use vfio_passthrough::dma::allow_locked_memory;
use vfio_passthrough::host::HostMemory;
use vfio_passthrough::kvm::KvmHost;
use vfio_passthrough::{
    BarIndex, ConfigEffects, IommuContext, Iova, PassthroughFunction, PciAddress, ResetPolicy,
    Space,
};
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap, MemoryRegionAddress};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The guest's RAM, from guest physical address 0 on.
const RAM_SIZE: usize = 64 << 10;
/// Where the guest's code is.
const CODE: u16 = 0x1000;
/// The guest prints to this port, 4 bytes at a time.
const PORT: u16 = 0x10;
/// `mov eax, [0]; out PORT, eax; hlt`, in 16-bit code.
const GUEST: [u8; 8] = [0x66, 0xa1, 0, 0, 0x66, 0xe7, PORT as u8, 0xf4];
/// Where BARs are placed in the guest: below 4 GiB, and away from the interrupt controllers.
const BARS_START: u64 = 0xc000_0000;
const BARS_END: u64 = 0xf000_0000;
/// The command register (PCI 6.2.2), with memory decoding and bus mastering on.
const COMMAND: u16 = 0x04;
const MEMORY_AND_BUS_MASTER: u16 = 0b110;
/// Three pages that KVM needs in real mode on old Intel hosts (`KVM_SET_TSS_ADDR`).
const TSS: usize = 0xfffb_d000;

fn main() -> ExitCode {
    match run() {
        Ok(line) => {
            println!("ok: {line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("minimal_vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String> {
    let argument = env::args().nth(1).ok_or("usage: minimal_vmm ADDRESS, such as 0000:01:00.0")?;
    let address: PciAddress = argument.parse()?;
    let (vm, host) = create_vm()?;
    // KVM learns of the device's group, and then the device is opened.
    let container = IommuContext::open()?;
    container.link(host.link().map_err(failed("KVM_CREATE_DEVICE(VFIO)"))?)?;
    let device = container.open_device(address)?;
    // Guest RAM for the device, at the addresses that the guest knows. The kernel pins it.
    let ram = Arc::new(GuestRegionMmap::from_range(GuestAddress(0), RAM_SIZE, None)?);
    let memory: Arc<dyn HostMemory> = ram.clone();
    allow_locked_memory(memory.size())?;
    let mappings = container.dma().map_all([(Iova(0), memory)])?;
    let line = boot(&vm, &host, &ram, address, device)?;
    // The function was shut down in `boot`: the device reaches the memory no more.
    drop(mappings);
    Ok(line)
}

/// A VM, and the part of it that the library may use: 16 memory slots and 64 interrupt routes.
pub fn create_vm() -> Result<(Arc<VmFd>, KvmHost)> {
    let kvm = Kvm::new().map_err(failed("open /dev/kvm"))?;
    let vm = Arc::new(kvm.create_vm().map_err(failed("KVM_CREATE_VM"))?);
    vm.set_tss_address(TSS).map_err(failed("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(failed("KVM_CREATE_IRQCHIP"))?;
    let host = KvmHost::new(vm.clone(), 0..16, 24..24 + 64);
    Ok((vm, host))
}

/// Gives the device to the guest, and runs the guest to its end.
pub fn boot(
    vm: &VmFd,
    host: &KvmHost,
    ram: &Arc<GuestRegionMmap>,
    address: PciAddress,
    device: Arc<dyn Device>,
) -> Result<String> {
    ram.write_slice(&GUEST, MemoryRegionAddress(CODE.into()))?;
    let slot = host.memory().place(0, ram.clone()).map_err(failed("place RAM in the guest"))?;
    let function =
        PassthroughFunction::new(address, device, &host.services(), ResetPolicy::Required)?;
    let (bar, base) = place_bars(&function)?;
    // Memory decoding puts the BAR's memory slots into the guest.
    carry_out(&function.config_write(COMMAND, &MEMORY_AND_BUS_MASTER.to_le_bytes()));
    let vcpu = create_vcpu(vm, base)?;
    let (printed, exits) = run_guest(vcpu, &function)?;
    println!("the guest read {printed:#010x} at {base:#x}, the start of {bar}, with {exits} exits");
    let mut expected = [0; 4];
    function.bar_read(bar, 0, &mut expected);
    function.shutdown()?;
    drop(slot);
    if printed != u32::from_le_bytes(expected) {
        return Err(format!("the device has {:#010x} there", u32::from_le_bytes(expected)).into());
    }
    if exits != 0 {
        return Err(
            format!("{bar} of {address} begins with what the guest cannot reach directly").into()
        );
    }
    Ok(format!("the guest read {printed:#010x} from {bar} of {address} without an exit"))
}

/// Gives each memory BAR an address, as firmware does. Returns the first one.
fn place_bars(function: &PassthroughFunction) -> Result<(BarIndex, u64)> {
    let mut first = None;
    let mut next = BARS_START;
    let is_memory = |bar: &&vfio_passthrough::Bar| {
        bar.kind.space() == Space::Memory && bar.index != BarIndex::ROM
    };
    for bar in function.bars().iter().filter(is_memory) {
        // A BAR's address is a multiple of its size, which is a power of two.
        let base = next.next_multiple_of(bar.size);
        if base + bar.size > BARS_END {
            return Err(format!("{} of {:#x} bytes has no room", bar.index, bar.size).into());
        }
        carry_out(&function.place_bar(bar.index, base)?);
        first = first.or(Some((bar.index, base)));
        next = base + bar.size;
    }
    first.ok_or_else(|| format!("{} has no BAR in memory", function.address()).into())
}

/// What a config write leaves for the VMM to do. With one function and a bus that asks the function
/// itself (`decode`), nothing: `slots_freed` is for its neighbours (`retry_placement`), `bars` for
/// a bus that dispatches by ranges, and
/// `coalesced_writes` an offer that spares exits (`KVM_REGISTER_COALESCED_MMIO`).
fn carry_out(effects: &ConfigEffects) {
    println!("config write {}: BARs are at {:x?}", effects.sequence, effects.bars);
}

/// A CPU at [`CODE`] in real mode, whose data segment begins at `base`: the segment's base is a
/// register of its own, so that it can be above the first MiB.
fn create_vcpu(vm: &VmFd, base: u64) -> Result<VcpuFd> {
    let vcpu = vm.create_vcpu(0).map_err(failed("KVM_CREATE_VCPU"))?;
    let mut special = vcpu.get_sregs().map_err(failed("KVM_GET_SREGS"))?;
    (special.cs.base, special.cs.selector) = (0, 0);
    special.ds.base = base;
    vcpu.set_sregs(&special).map_err(failed("KVM_SET_SREGS"))?;
    let mut registers = vcpu.get_regs().map_err(failed("KVM_GET_REGS"))?;
    registers.rip = CODE.into();
    vcpu.set_regs(&registers).map_err(failed("KVM_SET_REGS"))?;
    Ok(vcpu)
}

/// Runs the guest until it has printed. Returns what, and how often the guest's access to the BAR
/// left it.
fn run_guest(mut vcpu: VcpuFd, function: &PassthroughFunction) -> Result<(u32, u32)> {
    let mut exits = 0;
    loop {
        match vcpu.run().map_err(failed("KVM_RUN"))? {
            VcpuExit::IoOut(PORT, data) => {
                let value = data.first_chunk().ok_or("the guest printed fewer than 4 bytes")?;
                return Ok((u32::from_le_bytes(*value), exits));
            }
            // What a PCI bus does with an access that no memory slot takes.
            VcpuExit::MmioRead(gpa, data) => {
                exits += 1;
                match function.decode(Space::Memory, gpa) {
                    Some((bar, offset)) => function.bar_read(bar, offset, data),
                    None => data.fill(0xff),
                }
            }
            other => return Err(format!("the guest ended with {other:?}").into()),
        }
    }
}

/// Says what failed.
fn failed<E: Display>(what: &str) -> impl Fn(E) -> String {
    move |error| format!("{what}: {error}")
}
