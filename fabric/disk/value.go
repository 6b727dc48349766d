package disk

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
)

// Value keeps one value in a file of a state directory. It is safe for concurrent use, but
// only one Value at a time may have the file open; others may have other files of the same
// folder. Close it.
type Value struct {
	name   string
	files  *directory
	syncer *syncer
}

const (
	valueKey    = "value"
	valueWayOut = "remove it, and restart the agent"
)

// OpenValue opens the file of a name in a folder of the state directory, and makes the
// folder.
func OpenValue(dir, folder, name string, opts ...Option) (*Value, error) {
	o := options{delay: syncDelay, retry: syncRetry, sync: syncPath}
	for _, set := range opts {
		set(&o)
	}
	closed := make(chan struct{})
	v := &Value{name: name, files: newDirectory(filepath.Join(dir, folder), name, validValue, o.sync, closed)}
	_, err := prepare(dir, v.files.dir, o.sync)
	if err == nil {
		err = v.files.recover()
	}
	if err != nil {
		return nil, fmt.Errorf("state: %w; %s", err, remedy(err))
	}
	v.syncer = startSyncer(v.files, o.delay, o.retry, closed)
	return v, nil
}

// Get reads what was put last. It is an error if the file cannot be read; found is false
// if there is none. A power cut may have taken the last change.
func (v *Value) Get(into any) (found bool, err error) {
	err = v.files.each(func(_ string, content []byte) error {
		found = true
		return decodeAs(valueKey, content, into, valueWayOut)
	})
	return found, err
}

// Put keeps a value. It is safe from the end of the process when Put returns, and on the
// disk soon after; Diagnose says if not. After an error the value is as before.
func (v *Value) Put(is any) error {
	content, err := encodeAs(valueKey, is)
	if err == nil {
		err = v.files.put(v.name, content)
	}
	if err != nil {
		return fmt.Errorf("state of %s: %w", v.name, err)
	}
	return nil
}

// Diagnose reports why changes cannot be written, or are not safe on the disk.
func (v *Value) Diagnose(context.Context) []string {
	if err := v.files.obstacle(); err != nil {
		return []string{fmt.Sprintf("state of %s cannot be written: %v", v.name, err)}
	}
	if err := v.syncer.notSafe(); err != nil {
		return []string{err.Error()}
	}
	return nil
}

// Close makes all changes safe on the disk. A second Close does nothing.
func (v *Value) Close() error { return v.syncer.close() }

// validValue reports why the content of a value's file cannot be read.
func validValue(_ string, content []byte) error {
	return decodeAs(valueKey, content, new(json.RawMessage), valueWayOut)
}
