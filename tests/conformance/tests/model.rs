//! The checks and the random sequences on the model, which need no machine.

#![allow(clippy::unwrap_used, clippy::panic)]

use conformance::random::{self, Report};
use conformance::{Scene, checks};
use vfio_model::Kernel;

const KERNELS: [Kernel; 4] =
    [Kernel::Linux5_4, Kernel::Linux6_1, Kernel::Linux6_12, Kernel::Linux7_3];

#[test]
fn every_check_holds_on_the_model() {
    for kernel in KERNELS {
        let scene = Scene::imagined(kernel);
        let mut model = scene.description.clone().build();
        let results = checks::run(&mut model, &scene);
        assert_eq!(results.failed, [], "{kernel:?}");
        let all = checks::all::<conformance::linux::Linux>(scene.description.iommufd);
        assert_eq!(results.held as usize, all.len());
        assert_eq!(model.open_fds(), [], "{kernel:?}");
    }
}

#[test]
fn the_checks_hold_with_little_memory_to_lock() {
    let mut scene = Scene::imagined(Kernel::Linux6_12);
    scene.description.locked_memory = Some(32 << 12);
    let mut model = scene.description.clone().build();
    assert_eq!(checks::run(&mut model, &scene).failed, []);
}

#[test]
fn random_sequences_leave_nothing_behind() {
    for kernel in KERNELS {
        let mut scene = Scene::imagined(kernel);
        scene.description.mock_devices = kernel == Kernel::Linux7_3;
        let mut one = scene.description.clone().build();
        let mut two = scene.description.clone().build();
        let mut report = Report::default();
        for seed in 0..2000 {
            random::run(seed, &scene, &mut one, &mut two, &mut report);
            assert_eq!(
                (one.open_fds(), one.containers(), one.iommufds(), one.locked_memory()),
                (vec![], 0, 0, 0),
                "{kernel:?}, seed {seed}"
            );
        }
        assert_eq!((report.calls, &report.differences[..]), (100_000, &[][..]));
        let refused = report.refused * 100 / report.calls;
        assert!((30..70).contains(&refused), "{refused}% of the calls were refused");
    }
}

#[test]
fn two_kernels_that_differ_are_reported() {
    let mut scene = Scene::imagined(Kernel::Linux6_12);
    scene.description.iommufd = false;
    let mut new = scene.description.clone().build();
    let mut old = Scene::imagined(Kernel::Linux6_1).description.build();
    let mut report = Report::default();
    for seed in 0..500 {
        random::run(seed, &scene, &mut new, &mut old, &mut report);
    }
    for call in ["SetContainer", "DeviceInfo", "IommuInfo", "IrqInfo", "SetIrqs"] {
        let mut differences = report.differences.iter();
        assert!(differences.any(|difference| difference.call.starts_with(call)), "{call}");
    }
}
