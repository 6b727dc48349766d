package labtest_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/vmfabric/vmfabric/testenv/labtest"
)

// recorder is a test that writes down how it would have ended first.
type recorder struct {
	testing.TB
	end string
}

func (*recorder) Helper() {}

func (*recorder) Context() context.Context { return context.Background() }

func (r *recorder) Skip(args ...any) { r.end = cmp.Or(r.end, "skipped: "+fmt.Sprint(args...)) }

func (r *recorder) Fatalf(format string, args ...any) {
	r.end = cmp.Or(r.end, "failed: "+fmt.Sprintf(format, args...))
}

func TestMissing(t *testing.T) {
	for value, want := range map[string]string{
		"":     "skipped: no zebra here",
		"must": "failed: no zebra here (VMFABRIC_LAB=must)",
	} {
		t.Setenv(labtest.Variable, value)
		var r recorder
		labtest.Missing(&r, errors.New("no zebra here"))
		assert.Equal(t, want, r.end)
	}
}

func TestNeed(t *testing.T) {
	t.Setenv(labtest.Variable, "")
	var r recorder
	labtest.Need(&r, "no-such-program")
	if testing.Short() {
		assert.Equal(t, "skipped: not under -short", r.end)
		return
	}
	assert.Contains(t, r.end, "skipped: no no-such-program here: program no-such-program: executable file not found")
}
