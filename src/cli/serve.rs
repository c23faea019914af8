//! `atlas serve`.

use super::Context;
use super::args::ServeArgs;
use super::backend::Serving;
use super::output::{Output, Reply};
use crate::Result;
use serde_json::json;
use tokio::sync::oneshot;

/// Serves until the program is asked to end. The answer is printed when it is ready, not when it ends.
pub(crate) async fn run(args: &ServeArgs, context: &Context, output: &mut Output) -> Result<Reply> {
    let config = &context.config()?.config;
    let (tell_ready, is_ready) = oneshot::channel();
    let ready = Box::new(move |serving: Serving| {
        // Nobody listens any more if the program is ending.
        let _ = tell_ready.send(serving);
    });
    let serve = context.backend.serve(config, args.standby, ready, context.shutdown.clone());
    tokio::pin!(serve);
    tokio::select! {
        result = &mut serve => return result.map(|()| Reply::streamed()),
        Ok(serving) = is_ready => {
            for (what, address) in [("http", &serving.http), ("grpc", &serving.grpc)] {
                tracing::info!(what, address = address.as_deref().unwrap_or("off"), "serving");
            }
            output.reply(&Reply::new(json!({"ready": true, "pid": std::process::id(), "serving": serving}), "ready", "ready"))?;
        }
    }
    serve.await?;
    Ok(Reply::streamed())
}
