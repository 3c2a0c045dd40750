//! How linux-loader loads a bzImage into RAM in several regions.

use std::io::Write;

use linux_loader::loader::BzImage;
use resources::AddressRange;
use vm_memory::{Bytes, GuestAddress};

use crate::guest::boot::loader::load;
use crate::guest::memory::Ram;

const GPA: u64 = 4 << 30;

/// A minimal bzImage: five sectors of setup code, and the kernel.
fn bzimage(kernel: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 5 * 512];
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x211] = 1;
    image.extend(kernel);
    image
}

#[test]
fn loads_a_kernel_into_the_guests_ram_and_leaves_it_mapped() {
    let plan = [AddressRange::new(0, 2 << 20), AddressRange::new(GPA, 2 << 20)];
    let ram = Ram::new(&plan).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bzimage(b"kernel")).unwrap();
    let loaded = load::<BzImage>(ram.memory(), Some(GPA), &mut &file).unwrap();
    assert_eq!((loaded.kernel_load.0, loaded.kernel_end), (GPA, GPA + 6));
    let mut kernel = [0; 6];
    ram.memory().read_slice(&mut kernel, GuestAddress(GPA)).unwrap();
    assert_eq!(&kernel, b"kernel");
    ram.memory().write_obj(7_u32, GuestAddress(0)).unwrap();
}
