//! Tests of a host that has fewer vectors, files or routes than the guest asks for.

use std::io::Result;

use super::*;

/// A device with MSI or MSI-X, on a host with `had` interrupt vectors.
fn few(msi: Option<u16>, msix: Option<(u16, IrqFlags)>, had: u32) -> Setup {
    few_on(msi, msix, |device| device.with_host_vectors(had))
}

/// The same on a host whose kernel does not report the number.
fn few_uncounted(msi: Option<u16>, msix: Option<(u16, IrqFlags)>, had: u32) -> Setup {
    few_on(msi, msix, |device| device.with_host_vectors(had).with_uncounted_vectors())
}

fn few_on(
    msi: Option<u16>,
    msix: Option<(u16, IrqFlags)>,
    host: impl FnOnce(PciDevice) -> PciDevice,
) -> Setup {
    lines::keep();
    let setup = Setup::with(|faults| Ok(host(PciDevice::with_interrupts(faults, msi, msix)?)));
    // The guest can read pending bits only while the function decodes memory.
    setup.write(COMMAND, 2);
    setup
}

/// What a guest's driver does to use 16 vectors.
type Driver<'a> = &'a dyn Fn(&Setup);

impl Setup {
    fn with(device: impl FnOnce(Arc<Faults>) -> Result<PciDevice>) -> Self {
        let faults = Arc::new(Faults::default());
        let device = Arc::new(device(faults.clone()).unwrap());
        Self::of(faults, device)
    }

    /// The guest programs vectors and unmasks them.
    fn unmask(&self, vectors: std::ops::Range<u16>) {
        vectors.for_each(|vector| {
            self.program(vector);
            self.mask(vector, false);
        });
    }

    /// Each vector of the device fires; returns those that arrive.
    fn fire(&self, vectors: u16) -> Vec<u16> {
        (0..vectors).for_each(|vector| self.device.raise(vector).unwrap());
        self.arrived().into_keys().collect()
    }
}

/// The lines so far, each of which names the device.
fn one_line(parts: &[&str]) {
    let lines = lines::taken();
    assert_eq!(lines.len(), 1, "{lines:?}");
    let whole = parts.iter().chain(&["01:00.0"]).all(|part| lines[0].contains(part));
    assert!(whole, "{parts:?} are not in {lines:?}");
}

#[test]
fn msix_that_cannot_grow_works_with_the_vectors_that_the_host_has() {
    for had in [1, 5, 15] {
        let setup = few(None, Some((16, NORESIZE)), had);
        setup.unmask(0..16);
        let before = setup.set_irqs();
        setup.write(MSIX_CONTROL, ENABLE);
        one_line(&[&format!("MSI-X has {had} of the 16 vectors")]);
        assert_eq!(setup.set_irqs() - before, 3, "the pin; 16 vectors; {had} vectors");
        let had = had as u16;
        assert_eq!(setup.fire(16), (0..had).collect::<Vec<_>>());
        assert_eq!(setup.pending(), 0xffff & !((1 << had) - 1), "others stay pending");
        setup.mask(0, true);
        setup.mask(0, false);
        assert_eq!(setup.set_irqs() - before, 3, "the index stays enabled");
        setup.write(MSIX_CONTROL, 0);
        let before = setup.set_irqs();
        setup.write(MSIX_CONTROL, ENABLE);
        assert_eq!(setup.set_irqs() - before, 3, "the next enable asks for all again");
        assert_eq!(lines::taken(), [""; 0], "logged once");
    }
}

#[test]
fn msix_that_cannot_grow_works_with_a_half_if_the_number_is_unknown() {
    // The host's number, the number that works, and the calls until then.
    for (had, works, calls) in [(16, 16, 1), (15, 8, 2), (8, 8, 2), (7, 4, 3), (1, 1, 5)] {
        let setup = few_uncounted(None, Some((16, NORESIZE)), had);
        setup.unmask(0..16);
        let before = setup.set_irqs();
        setup.write(MSIX_CONTROL, ENABLE);
        assert_eq!(setup.set_irqs() - before, 1 + calls, "the pin, and {calls} calls");
        if works < 16 {
            one_line(&[&format!("MSI-X has {works} of the 16 vectors"), "(os error 28)"]);
        }
        assert_eq!(setup.fire(16), (0..works).collect::<Vec<_>>());
        assert_eq!(setup.pending(), 0xffff & !((1 << works) - 1), "others stay pending");
        // The guest masks vectors and the function: nothing is disabled, nothing is lost.
        let before = setup.set_irqs();
        setup.mask(0, true);
        assert_eq!(setup.fire(1), [0_u16; 0]);
        setup.write(MSIX_CONTROL, ENABLE | FUNCTION_MASK);
        setup.write(MSIX_CONTROL, ENABLE);
        setup.mask(0, false);
        assert_eq!(setup.arrived().into_keys().collect::<Vec<_>>(), [0]);
        assert_eq!(setup.set_irqs(), before, "the index stays enabled");
        setup.write(MSIX_CONTROL, 0);
        let before = setup.set_irqs();
        setup.write(MSIX_CONTROL, ENABLE);
        assert_eq!(setup.set_irqs() - before, 1 + calls, "the next enable asks for all again");
        assert_eq!(lines::taken(), [""; 0], "logged once");
    }
}

#[test]
fn msix_that_can_grow_works_with_all_vectors_if_the_number_is_unknown() {
    for had in [1, 5, 15, 16] {
        let setup = few_uncounted(None, Some((16, DYNAMIC)), had);
        setup.unmask(0..16);
        setup.write(MSIX_CONTROL, ENABLE);
        assert_eq!(lines::taken().len(), usize::from(had < 16));
        assert_eq!(setup.fire(16), (0..had as u16).collect::<Vec<_>>());
    }
}

#[test]
fn a_guest_that_enables_the_same_again_gets_all_vectors_that_the_host_has_by_then() {
    let setup = few(None, Some((16, NORESIZE)), 16);
    setup.unmask(0..16);
    // The first call is for the pin. 16, 8 and 4 vectors are refused.
    (1..4).for_each(|nth| setup.faults.fail(Call::SetIrqs, nth, libc::ENOSPC));
    setup.write(MSIX_CONTROL, ENABLE);
    one_line(&["MSI-X has 2 of the 16 vectors"]);
    setup.mask(0, true);
    assert_eq!(setup.fire(2), [1]);
    setup.write(MSIX_CONTROL, ENABLE);
    setup.mask(0, false);
    assert_eq!(setup.arrived(), times([(0, 1)]), "it stayed pending");
    assert_eq!(setup.fire(16).len(), 16);
    assert_eq!(lines::taken(), [""; 0]);
}

#[test]
fn msix_that_can_grow_works_with_the_vectors_that_the_host_has() {
    let at_once = |setup: &Setup| {
        setup.unmask(0..16);
        setup.write(MSIX_CONTROL, ENABLE);
    };
    let one_by_one = |setup: &Setup| {
        setup.write(MSIX_CONTROL, ENABLE);
        setup.unmask(0..16);
    };
    let unmasked_last = |setup: &Setup| {
        setup.write(MSIX_CONTROL, ENABLE | FUNCTION_MASK);
        setup.unmask(0..16);
        setup.write(MSIX_CONTROL, ENABLE);
    };
    let drivers: [(&str, Driver<'_>); 3] =
        [("at once", &at_once), ("one by one", &one_by_one), ("last", &unmasked_last)];
    for ((name, driver), had) in
        drivers.into_iter().flat_map(|driver| [1, 5, 15].map(|had| (driver, had)))
    {
        let setup = few(None, Some((16, DYNAMIC)), had.into());
        driver(&setup);
        let lines = lines::taken();
        assert_eq!(lines.len(), 1, "{name}, {had}: {lines:?}");
        assert!(lines[0].contains("01:00.0") && lines[0].contains("MSI-X"), "{lines:?}");
        assert_eq!(setup.fire(16), (0..had).collect::<Vec<_>>(), "{name}");
        assert_eq!(setup.pending(), 0xffff & !((1 << had) - 1), "{name}: others stay pending");
        setup.mask(0, true);
        setup.mask(0, false);
        assert_eq!(setup.fire(1), [0], "{name}");
        assert_eq!(lines::taken(), [""; 0], "{name}, {had}: logged once");
    }
}

#[test]
fn a_vector_that_is_refused_once_is_bound_at_the_next_access() {
    let setup = few(None, Some((16, DYNAMIC)), 16);
    setup.write(MSIX_CONTROL, ENABLE);
    setup.unmask(0..3);
    setup.program(3);
    setup.faults.fail(Call::SetIrqs, 0, libc::ENOSPC);
    setup.mask(3, false);
    one_line(&["VFIO_DEVICE_SET_IRQS (MSI-X, bind 1 vectors from 3 on)", "fewer devices"]);
    assert_eq!(setup.fire(4), [0, 1, 2]);
    // The vector fired while the host had none for it, and its interrupt is not lost.
    setup.unmask(4..5);
    assert_eq!(setup.fire(5), [0, 1, 2, 3, 4]);
    assert_eq!(setup.device.irqs().bound.len(), 5);
}

#[test]
fn one_refused_vector_takes_no_other_with_it() {
    let setup = few(None, Some((16, DYNAMIC)), 16);
    setup.write(MSIX_CONTROL, ENABLE | FUNCTION_MASK);
    setup.unmask(0..3);
    // The call for all three fails, the call for the first, and that for the second.
    (0..2).for_each(|nth| setup.faults.fail(Call::SetIrqs, nth, libc::ENOSPC));
    setup.write(MSIX_CONTROL, ENABLE);
    assert_eq!(setup.fire(3), [1, 2]);
    one_line(&["MSI-X has 2 of the 3 vectors"]);
}

#[test]
fn msi_works_with_a_power_of_two() {
    // Linux has all or one, where it reports the number.
    let counted = [(8, 7, 1), (8, 1, 1), (2, 1, 1), (8, 8, 8)].map(|case| (true, case));
    let uncounted = [(8, 7, 4), (8, 3, 2), (8, 1, 1), (2, 1, 1)].map(|case| (false, case));
    for (counts, (asked, had, gets)) in counted.into_iter().chain(uncounted) {
        let power = u16::ilog2(asked) as u16;
        let host = if counts { few } else { few_uncounted };
        let setup = host(Some(0x0080 | power << 1), None, had);
        let _ = setup.function.config_write(MSI + 4, &0xfee0_0000_u32.to_le_bytes());
        setup.write(MSI + 12, 0x40);
        setup.write(MSI + 2, 1 | power << 4);
        assert_eq!(setup.read(MSI + 2) >> 4 & 0b111, power, "the guest reads what it wrote");
        assert_eq!(setup.device.irqs().allocated.len(), gets, "{asked} of {had}");
        let expected: Vec<_> = (0x40..0x40 + gets as u16).collect();
        (0..asked).for_each(|vector| setup.device.raise(vector).unwrap());
        assert_eq!(setup.arrived().into_keys().collect::<Vec<_>>(), expected);
        let lines = lines::taken();
        assert_eq!(lines.len(), usize::from(gets < asked.into()), "{lines:?}");
    }
}

#[test]
fn a_host_without_vectors_is_reported_once_and_tried_again() {
    for flags in [NORESIZE, DYNAMIC] {
        let setup = few(None, Some((16, flags)), 0);
        setup.unmask(0..16);
        (0..5).for_each(|_| setup.write(MSIX_CONTROL, ENABLE));
        one_line(&["VFIO_DEVICE_SET_IRQS (MSI-X", "(os error 28)"]);
        assert_eq!(setup.device.irqs().active, None);
        assert!(setup.set_irqs() > 1, "{}", setup.set_irqs());
    }
}

#[test]
fn too_few_files_leave_the_interrupts_that_have_one() {
    for (flags, errno) in [NORESIZE, DYNAMIC]
        .into_iter()
        .flat_map(|flags| [libc::EMFILE, libc::ENFILE].map(|errno| (flags, errno)))
    {
        let setup = few(None, Some((16, flags)), 16);
        setup.write(MSIX_CONTROL, FUNCTION_MASK);
        setup.unmask(0..16);
        let made = 3;
        (made..made + 60).for_each(|nth| setup.faults.fail(Call::Eventfd, nth, errno));
        setup.write(MSIX_CONTROL, ENABLE);
        let lines = lines::taken();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].contains(&format!("(os error {errno})")), "{lines:?}");
        assert_eq!(setup.fire(16), [0, 1, 2]);
        // Files are free again, and the guest enables MSI-X again.
        setup.faults.clear();
        setup.write(MSIX_CONTROL, 0);
        setup.write(MSIX_CONTROL, ENABLE);
        assert_eq!(setup.fire(16).len(), 16);
    }
}

#[test]
fn too_few_routes_leave_the_interrupts_that_have_one() {
    let setup = few(None, Some((4, DYNAMIC)), 16);
    setup.write(MSIX_CONTROL, ENABLE | FUNCTION_MASK);
    setup.unmask(0..4);
    // All four, the lower two, and one of those: then the other three work.
    (0..3).for_each(|nth| setup.faults.fail(Call::Route, nth, libc::ENOSPC));
    setup.write(MSIX_CONTROL, ENABLE);
    one_line(&["cannot route MSI-X to the guest", "(os error 28)"]);
    assert_eq!(setup.fire(4), [1, 2, 3]);
    assert_eq!(setup.pending(), 0b0001, "it is not lost");
    setup.mask(1, true);
    assert_eq!(setup.arrived(), times([(0, 1)]));
}
