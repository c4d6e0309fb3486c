package main

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	droverv1 "github.com/droverhq/drover/proto/drover/v1"
)

// TestTheEarlyQuestionIsAskedAgainOnlyWhenItFailedEarly: who has been patient with a
// scheduler that is away is not made to wait for it a second time.
func TestTheEarlyQuestionIsAskedAgainOnlyWhenItFailedEarly(t *testing.T) {
	t.Parallel()
	away := errors.New("no scheduler")
	for _, c := range []struct {
		name   string
		err    error         // of the first question
		output time.Duration // how long it comes; the first answer takes 10 s
		asked  int
		want   error
	}{
		{"an answer before the last byte", nil, time.Minute, 1, nil},
		{"an answer after it", nil, time.Second, 1, nil},
		{"an error long ago", away, time.Minute, 2, nil},
		{"an error after the last byte", away, time.Second, 1, away},
	} {
		synctest.Test(t, func(t *testing.T) {
			asked := 0
			ended, leave := ahead(t.Context(), func(context.Context) (*droverv1.Job, error) {
				if asked++; asked > 1 {
					return &droverv1.Job{}, nil
				}
				time.Sleep(10 * time.Second)
				return &droverv1.Job{}, c.err
			})
			defer leave()
			time.Sleep(c.output)
			j, err := ended()
			if !errors.Is(err, c.want) || asked != c.asked || j == nil {
				t.Errorf("%s: %v after %d questions, want %v after %d", c.name, err, asked, c.want, c.asked)
			}
		})
	}
}

// TestNobodyAsksOnAfterLeaving: the goroutine ends with who began it.
func TestNobodyAsksOnAfterLeaving(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		over := false
		_, leave := ahead(t.Context(), func(ctx context.Context) (*droverv1.Job, error) {
			<-ctx.Done()
			over = true
			return nil, ctx.Err()
		})
		if leave(); !over {
			t.Error("it still asks")
		}
	})
}
