//! What must not compile: memory that is freed or moved while devices reach it, a window that outlives its device,
//! a route that outlives its irqfd.

#[test]
fn what_would_be_unsound_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
