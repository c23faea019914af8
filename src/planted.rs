//! Mistakes that a test can plant, to see that an exploration of interleavings finds them. In builds without fail points
//! there are none.

/// A place where the code could be wrong, and is if a test says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A call that waits for locks looks whether they were granted before it listens.
    LookBeforeListening,
    /// A request that was given up keeps the lock it was handed at the same moment.
    KeepWhatWasHandedOver,
    /// A lease, of locks or of the store, is believed in for twice as long as it lasts.
    TrustForTooLong,
    /// Numbers are issued up to a bound that is not yet in the store.
    IssueBeforeTheBound,
    /// The latch is let go of between the choice of a snapshot and its registration.
    RegisterLater,
    /// A deletion is counted after the record of the backup lock was read.
    CountAfterTheLook,
    /// A lease that was given up comes back with a renewal that was on its way.
    RenewWhatWasGivenUp,
}

impl Mistake {
    /// Every mistake.
    pub const ALL: [Mistake; 7] = [
        Mistake::LookBeforeListening,
        Mistake::KeepWhatWasHandedOver,
        Mistake::TrustForTooLong,
        Mistake::IssueBeforeTheBound,
        Mistake::RegisterLater,
        Mistake::CountAfterTheLook,
        Mistake::RenewWhatWasGivenUp,
    ];

    /// Name of its fail point; `return` plants it.
    pub fn fail_point(self) -> &'static str {
        match self {
            Mistake::LookBeforeListening => "mistake::look_before_listening",
            Mistake::KeepWhatWasHandedOver => "mistake::keep_what_was_handed_over",
            Mistake::TrustForTooLong => "mistake::trust_for_too_long",
            Mistake::IssueBeforeTheBound => "mistake::issue_before_the_bound",
            Mistake::RegisterLater => "mistake::register_later",
            Mistake::CountAfterTheLook => "mistake::count_after_the_look",
            Mistake::RenewWhatWasGivenUp => "mistake::renew_what_was_given_up",
        }
    }

    /// True if a test has planted it.
    pub(crate) fn is_made(self) -> bool {
        // Named before the macro, which is empty in other builds.
        let _name = self.fail_point();
        fail::fail_point!(_name, |_| true);
        false
    }
}
