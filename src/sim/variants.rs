//! Deliberately broken protocols, by which the invariants show that they have teeth.

/// One way to get it wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Variant {
    /// (a) The host activates with `switch` where it should with `test`: the boot default moves before anything is verified.
    SwitchInsteadOfTest,
    /// (a) The host commits as soon as the activation has ended, without being asked.
    CommitsUnasked,
    /// (a) The revert goes to what the profile says, and not to what ran before.
    RevertsToProfile,
    /// (b) The host waits for a commit without a deadline.
    NoDeadline,
    /// (b) The revert is disarmed once the activation has ended.
    DisarmedEarly,
    /// (a) Verified over the connection from before the activation.
    OldConnection,
    /// (b) Each daemon-reload starts the countdown anew, as systemd's timers do.
    DeadlineStartsAnew,
    /// (c) Status calls applied what it set out to apply.
    AppliedIsAttempted,
    /// (c) The host answers with what it was told to run, and not with what it runs.
    AnswersFromMemory,
    /// (d) The landing has no lock, and does not look whether another one runs: a second one starts beside it.
    NoLock,
    /// (d) The host takes orders from any controller.
    NoFence,
    /// (e) The records of the stages do not outlive the pass.
    ForgetsRecords,
    /// (e) What is about to begin is not written down first.
    NoIntent,
    /// (e) A request for a pass is never over.
    RequestIsNeverOver,
    /// (f) A watch that was begun says nothing.
    DeafWatch,
    /// (f) A landing's service that has ended is not collected, and its name stays taken.
    NameStaysTaken,
    /// (g) Ready while work goes on.
    ReadyTooEarly,
    /// (g) Each write moves the transition times.
    MovesTransitions,
}

impl Variant {
    /// All of them, each with the invariant that has to catch it.
    pub(super) const ALL: [(Self, char); 18] = [
        (Self::SwitchInsteadOfTest, 'a'),
        (Self::CommitsUnasked, 'a'),
        (Self::RevertsToProfile, 'a'),
        (Self::NoDeadline, 'b'),
        (Self::DisarmedEarly, 'b'),
        (Self::OldConnection, 'a'),
        (Self::DeadlineStartsAnew, 'b'),
        (Self::AppliedIsAttempted, 'c'),
        (Self::AnswersFromMemory, 'c'),
        (Self::NoLock, 'd'),
        (Self::NoFence, 'd'),
        (Self::ForgetsRecords, 'e'),
        (Self::NoIntent, 'e'),
        (Self::RequestIsNeverOver, 'e'),
        (Self::DeafWatch, 'f'),
        (Self::NameStaysTaken, 'f'),
        (Self::ReadyTooEarly, 'g'),
        (Self::MovesTransitions, 'g'),
    ];
}
