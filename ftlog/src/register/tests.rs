use super::*;

const A: ReplicaId = ReplicaId(1);
const B: ReplicaId = ReplicaId(2);

/// Carries out every effect at once and returns the answers.
fn settle(register: &mut ViewRegister<u32>) -> Vec<(u32, Answer)> {
    let mut answers = Vec::new();
    while let Some(effect) = register.next_effect() {
        match effect {
            Effect::Persist(_) => register.persisted(Ok(())),
            Effect::Fence { .. } => register.fenced(),
            Effect::Answer { to, answer } => answers.push((to, answer)),
        }
    }
    answers
}

fn ask(register: &mut ViewRegister<u32>, request: Request) -> Answer {
    register.request(0, request);
    settle(register).pop().unwrap().1
}

fn pair() -> ViewRegister<u32> {
    let mut register = ViewRegister::new(None);
    ask(
        &mut register,
        Request::Start {
            primary: A,
            backup: Some(B),
            reset: false,
        },
    );
    register
}

fn claim(from_view: u64, claimant: ReplicaId) -> Request {
    Request::Claim {
        from_view,
        claimant,
    }
}

#[test]
fn one_claimant_wins_and_keeps_winning() {
    let mut register = pair();
    let view = View {
        number: 2,
        primary: B,
        backup: None,
    };
    for _ in 0..3 {
        assert_eq!(ask(&mut register, claim(1, B)), Answer::Won(view));
        assert_eq!(ask(&mut register, claim(1, A)), Answer::Lost(view));
    }
    assert_eq!(register.access(2, B), Access::ReadWrite);
    assert_eq!(register.access(1, A), Access::Refused);
    assert_eq!(register.access(2, A), Access::Refused);
    assert_eq!(
        ask(&mut register, claim(1, ReplicaId(9))),
        Answer::Lost(view)
    );
    assert!(matches!(
        ask(&mut register, claim(7, B)),
        Answer::Refused(_)
    ));
    assert!(matches!(
        ask(&mut register, claim(u64::MAX, B)),
        Answer::Refused(_)
    ));
}

#[test]
fn a_start_is_not_a_win() {
    let mut register = ViewRegister::new(None);
    ask(
        &mut register,
        Request::Start {
            primary: A,
            backup: None,
            reset: false,
        },
    );
    let view = View {
        number: 1,
        primary: A,
        backup: None,
    };
    assert_eq!(ask(&mut register, claim(0, A)), Answer::Lost(view));
}

#[test]
fn persist_then_fence_then_answer_and_others_wait() {
    let mut register = pair();
    register.request(1, claim(1, A));
    register.request(2, claim(1, B));
    register.request(3, Request::Get);
    let view = View {
        number: 2,
        primary: A,
        backup: None,
    };
    let record = Record {
        view,
        claimed: true,
        on: true,
    };
    assert_eq!(register.next_effect(), Some(Effect::Persist(record)));
    assert_eq!(register.next_effect(), None);
    assert_eq!(
        register.access(1, A),
        Access::ReadWrite,
        "nothing is decided yet"
    );
    register.persisted(Ok(()));
    assert_eq!(register.access(1, A), Access::Refused);
    assert_eq!(register.next_effect(), Some(Effect::Fence { below: 2 }));
    assert_eq!(register.next_effect(), None);
    register.fenced();
    let answers = settle(&mut register);
    assert_eq!(
        answers,
        [
            (1, Answer::Won(view)),
            (2, Answer::Lost(view)),
            (3, Answer::Record(Some(record)))
        ]
    );
}

#[test]
fn a_failed_write_changes_nothing() {
    let mut register = pair();
    register.request(1, claim(1, A));
    register.request(2, claim(1, B));
    assert!(matches!(register.next_effect(), Some(Effect::Persist(_))));
    register.persisted(Err("no space".into()));
    let answers = settle(&mut register);
    assert!(matches!(&answers[0], (1, Answer::Unavailable(reason)) if reason.contains("no space")));
    assert_eq!(
        answers[1],
        (
            2,
            Answer::Won(View {
                number: 2,
                primary: B,
                backup: None
            })
        )
    );
}

#[test]
fn a_restart_between_persist_and_answer_answers_the_same() {
    let mut register = pair();
    register.request(1, claim(1, B));
    let Some(Effect::Persist(stored)) = register.next_effect() else {
        panic!()
    };
    let mut restarted = ViewRegister::new(Some(stored));
    assert_eq!(ask(&mut restarted, claim(1, A)), Answer::Lost(stored.view));
    assert_eq!(ask(&mut restarted, claim(1, B)), Answer::Won(stored.view));
}

#[test]
fn off_fences_everyone_and_a_start_goes_on_counting() {
    let mut register = pair();
    assert!(matches!(
        ask(
            &mut register,
            Request::Start {
                primary: A,
                backup: None,
                reset: false
            }
        ),
        Answer::Refused(_)
    ));
    assert!(matches!(
        ask(&mut register, Request::Off { view: 2 }),
        Answer::Refused(_)
    ));
    register.request(0, Request::Off { view: 1 });
    assert!(matches!(register.next_effect(), Some(Effect::Persist(_))));
    register.persisted(Ok(()));
    assert_eq!(register.next_effect(), Some(Effect::Fence { below: 2 }));
    register.fenced();
    settle(&mut register);
    assert_eq!(register.access(1, A), Access::Refused);
    assert!(matches!(
        ask(&mut register, claim(1, B)),
        Answer::Refused(_)
    ));
    let start = Request::Start {
        primary: A,
        backup: None,
        reset: false,
    };
    let Answer::Record(Some(record)) = ask(&mut register, start) else {
        panic!()
    };
    assert_eq!((record.view.number, record.on), (2, true));
    let same = Request::Start {
        primary: A,
        backup: Some(A),
        reset: true,
    };
    assert!(matches!(ask(&mut register, same), Answer::Refused(_)));
}
