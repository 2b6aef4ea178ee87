//! One key of Redis as a sequential machine: what each operation does to the
//! value, and what it answers.

use std::rc::Rc;

use crate::history::{Answer, Op};

/// The value of a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    /// There is none.
    Absent,
    /// Made by INCR.
    Number(i64),
    /// Made by SET or APPEND.
    Text(Rc<str>),
}

/// The value after `op`, if a server that holds `value` would give this
/// answer to it (`None`: the answer is not known, so any will do).
pub fn apply(value: &Value, op: &Op, answer: Option<&Answer>) -> Option<Value> {
    let (after, right) = match (op, value) {
        (Op::Get, Value::Absent) => (value.clone(), fits(answer, |a| *a == Answer::Nil)),
        (Op::Get, Value::Number(n)) => {
            let right = fits(
                answer,
                |a| matches!(a, Answer::Text(t) if *t == n.to_string()),
            );
            (value.clone(), right)
        }
        (Op::Get, Value::Text(text)) => {
            let right = fits(answer, |a| matches!(a, Answer::Text(t) if **t == **text));
            (value.clone(), right)
        }
        (Op::Incr, Value::Absent | Value::Number(_)) => {
            let before = if let Value::Number(n) = value { *n } else { 0 };
            let after = before.checked_add(1)?;
            let right = fits(answer, |a| *a == Answer::Integer(after));
            (Value::Number(after), right)
        }
        (Op::Set(text), _) => (
            Value::Text(text.as_str().into()),
            fits(answer, |a| *a == Answer::Ok),
        ),
        (Op::Append(token), Value::Absent | Value::Text(_)) => {
            let before: &str = if let Value::Text(t) = value { t } else { "" };
            let length = before.len() + token.len();
            let right = fits(answer, |a| *a == Answer::Integer(length as i64));
            if !right {
                return None; // Before the text is copied in vain.
            }
            let mut text = String::with_capacity(length);
            text.push_str(before);
            text.push_str(token);
            (Value::Text(text.into()), right)
        }
        // Redis refuses these; an answer other than an error cannot be.
        (Op::Incr, Value::Text(_)) | (Op::Append(_), Value::Number(_)) => return None,
    };
    right.then_some(after)
}

fn fits(answer: Option<&Answer>, right: impl Fn(&Answer) -> bool) -> bool {
    answer.is_none_or(right)
}
