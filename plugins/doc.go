// Package plugins lets others extend a vmfabric agent with a [fabric.Speaker], a
// [fabric.Resolver] or a [fabric.Observer] in a program of its own. The agent
// starts the program and talks to it over gRPC, by hashicorp/go-plugin.
// plugin.proto is the contract; docs/plugins.md explains it, also for other
// languages.
//
// A plugin implements the interface and calls [Serve]:
//
//	func main() {
//		s, err := newSpeaker(plugins.Environment())
//		if err != nil {
//			log.Fatal(err)
//		}
//		plugins.Serve(plugins.Config{Speaker: s})
//		s.close()
//	}
//
// A host opens the plugin with [OpenSpeaker], [OpenResolver] or [OpenObserver], and
// gets a value with the interface. That value keeps the program running: it starts
// a program that died anew, after 100 ms to 10 s, and first kills one that does not
// answer a call or a check in time. Calls wait a little for a plugin that is down,
// then fail and say why. A plugin never outlives its host: the kernel kills it when
// the host dies, and the child of a script sees the end of its standard input.
//
// The author of a plugin tests it with the suite that the shipped ones pass, run on
// its program:
//
//	func TestConforms(t *testing.T) {
//		conformance.Speaker(t, func(t *testing.T) (fabric.Speaker, conformance.SpeakerControls) {
//			s, err := plugins.OpenSpeaker(t.Context(), plugins.Program{
//				Path: "./my-plugin", Env: []string{"ROUTES_DIR=" + t.TempDir()},
//			})
//			require.NoError(t, err)
//			t.Cleanup(func() { s.Close() })
//			return s, conformance.SpeakerControls{}
//		})
//	}
package plugins
