package lifecycle

import "context"

// OnEnd calls f once ctx has ended, on a goroutine of its own. release returns when f
// has returned or will never be called: what f uses may be closed then. A descriptor that
// f writes to would else be another file's by the time. release may be called once.
func OnEnd(ctx context.Context, f func()) (release func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		f()
	})
	return func() {
		if !stop() {
			<-done
		}
	}
}
