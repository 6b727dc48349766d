// Package plugins is how others extend a vmfabric agent: with a
// [fabric.Speaker], a [fabric.Resolver] or a [fabric.Observer] in a program of
// its own, which the agent starts and speaks to over gRPC, by hashicorp/go-plugin.
// plugin.proto is the contract; docs/plugins.md tells the rest, also for other
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
// A host opens it with [OpenSpeaker], [OpenResolver] or [OpenObserver], and has
// the interface back. Behind it the program is kept running: one that dies is
// started anew, after 100 ms to 10 s; one that does not answer a call or a check
// in time is killed first. Calls wait a little for a plugin that is down, then
// fail and say why. A plugin never outlives its host: the kernel kills it when
// the host dies, and a script's child sees the end of its standard input.
//
// An author holds a plugin to the laws of its interface with the suite that the
// shipped ones pass, run on its program:
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
