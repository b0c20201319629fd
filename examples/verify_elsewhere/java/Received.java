import java.util.List;
import java.util.Map;
import java.util.Set;

/** What really arrived, and who we are; `bound` has what `a2a` repeats of it. `cty` and `from` may be null. */
record Received(String jws, String typ, byte[] body, String audience, Object cty, Map<String, Object> bound,
        Object from, List<?> algorithms) {
    boolean isRequest() {
        return typ.equals("a2a-req+jws");
    }

    Set<String> members() {
        return isRequest() ? Set.of("htm", "htu", "ver", "ext") : Set.of("st", "req");
    }

    /** The extended key usage of the signer: a client, or a server. */
    String usage() {
        return isRequest() ? "1.3.6.1.5.5.7.3.2" : "1.3.6.1.5.5.7.3.1";
    }
}
