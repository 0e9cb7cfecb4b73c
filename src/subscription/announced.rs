//! What operators are told when the stream announces a table: types that have changed on the publisher, and
//! what may go wrong with its values.
//!
//! Warnings that the attempt's start has reported are not repeated.

use crate::error::Diagnosis;
use crate::pg::QualifiedName;
use crate::schema::redefined::{diagnosis, redefined};
use crate::schema::{SeenColumn, Warning};

use super::attempt::Context;
use super::failure::Failure;

/// What has been told since the attempt began.
#[derive(Debug, Default)]
pub(super) struct Announced {
    texts: Vec<String>,
}

impl Announced {
    /// Tells what follows from a table's description. `before` are its columns by the description before.
    pub(super) async fn planned(
        &mut self,
        context: &Context,
        source: &QualifiedName,
        before: Option<Vec<SeenColumn>>,
        columns: &[SeenColumn],
        warnings: &[Warning],
    ) -> Result<(), Failure> {
        let changed = before.map(|before| redefined(&before, columns)).unwrap_or_default();
        let mut news = Vec::new();
        if !changed.is_empty() {
            news.push(diagnosis(source, &changed, &context.subscription.name));
        }
        news.extend(warnings.iter().map(Warning::diagnosis));
        let reported = context.warned.borrow().clone();
        let is_new = |news: &Diagnosis| {
            let text = news.to_string();
            !reported.contains(&text) && !self.texts.contains(&text)
        };
        news.retain(is_new);
        if news.is_empty() {
            return Ok(());
        }
        for diagnosis in &news {
            context.attention(Some(source), diagnosis);
        }
        self.texts.extend(news.iter().map(ToString::to_string));
        let all: Vec<String> = reported.into_iter().chain(self.texts.iter().cloned()).collect();
        Ok(context.store.set_warnings(&context.owner, &all).await?)
    }
}
