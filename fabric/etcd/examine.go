package etcd

import (
	"context"
	"strings"
	"time"
)

// Examine says what [Registry.Diagnose] would say of the members of etcd, on a connection
// of its own. It reads, and neither keeps nor writes anything. Do not call it beside
// [Registry.Run].
func (r *Registry) Examine(ctx context.Context) (texts []string, err error) {
	client, err := connect(ctx, r.conf, r.tls)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	one, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	why := ""
	switch _, err := client.Txn(one).Then(r.cache.keys.views()...).Commit(); {
	case err == nil:
		r.prober.look(ctx, client, 0)
	case final(err):
		why = strings.TrimPrefix(refusal(err, r.cache.keys.root).Error(), "registry: ")
	default:
		why = r.prober.reason(ctx, client, err)
	}
	if why != "" {
		texts = append(texts, "registry: "+why)
	}
	for _, text := range r.prober.problems(time.Now(), why == "") {
		texts = append(texts, "registry: "+text)
	}
	return texts, ctx.Err()
}
