package worker

import (
	"context"
	"errors"
	"fmt"

	"kiln/builder"
)

// tag moves the user's tag to the finished build, unless a newer request moved it
// already: then to that one's. It returns when the tag is where the newest request wants
// it, so that whoever comes last, also a worker that was stopped in between, leaves the
// newest. Note is a sentence about that, with a blank in front; empty if there is
// nothing to say.
func (w *Worker) tag(ctx context.Context, t *task, done buildRecord) (note string, err error) {
	mine := tagRecord{
		Ref: t.plan.Target, Sequence: t.sequence, ImageRef: done.ImageRef, Digest: done.Digest, RequestID: t.id,
		RegistrySecret: t.plan.RegistrySecret, Platform: t.plan.Platform,
	}
	unavailable := func(err error) error {
		return &builder.Error{Kind: builder.KindUnavailable, Op: "recording the tag", Err: err}
	}
	current, err := load[tagRecord](ctx, w.deps.Ledger, tagKey(mine.Ref))
	for {
		if err != nil {
			return "", unavailable(err)
		}
		if c := current.value; c.Sequence < mine.Sequence || (c.Sequence == mine.Sequence && c.ImageRef != mine.ImageRef) {
			if err = store(ctx, w.deps.Ledger, &current, mine); errors.Is(err, ErrConflict) {
				current, err = load[tagRecord](ctx, w.deps.Ledger, tagKey(mine.Ref))
				continue
			} else if err != nil {
				return "", unavailable(err)
			}
		}
		w.reach("tag recorded")
		moved := w.deps.Builder.Tag(ctx, t.plan, current.value.ImageRef)
		newer := current.value.Sequence > mine.Sequence
		if moved != nil && (!newer || builder.KindOf(moved) == builder.KindUnavailable) {
			return "", moved
		}
		w.reach("tag moved")
		before := current.revision
		if current, err = load[tagRecord](ctx, w.deps.Ledger, tagKey(mine.Ref)); err == nil && current.revision == before {
			break
		}
	}
	if current.value.Sequence > mine.Sequence {
		note = fmt.Sprintf(" The tag is at the image of the newer request %s.", current.value.RequestID)
	}
	return note, nil
}
