import com.nimbusds.jose.util.Base64URL;
import com.nimbusds.jose.util.JSONObjectUtils;
import com.nimbusds.jose.util.X509CertUtils;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.cert.TrustAnchor;
import java.util.*;

/** One line for each vector of a file: "ok" or the step that refused it. */
final class Vectors {
    @SuppressWarnings("unchecked")
    public static void main(String[] arguments) throws Exception {
        Map<String, Object> file = JSONObjectUtils.parse(Files.readString(Path.of(arguments[0])));
        Map<String, Set<TrustAnchor>> anchors = new HashMap<>();
        var bundles = (Map<String, Map<String, Map<String, List<Map<String, Object>>>>>) file.get("bundles");
        bundles.get("trust_domains").forEach((domain, bundle) -> {
            Set<TrustAnchor> roots = new HashSet<>();
            for (Map<String, Object> key : bundle.get("keys"))
                if ("x509-svid".equals(key.get("use")))
                    roots.add(new TrustAnchor(X509CertUtils.parse(
                            Base64.getDecoder().decode((String) ((List<?>) key.get("x5c")).get(0))), null));
            anchors.put(domain, roots);
        });
        Verifier verifier = new Verifier(anchors, (Long) file.get("now"), new HashSet<>());
        for (Map<String, Object> vector : (List<Map<String, Object>>) file.get("vectors")) {
            String said = "ok";
            List<?> algorithms = (List<?>) vector.get("algorithms");
            try {
                if (algorithms.contains("Ed25519")) said = "skipped"; // nimbus needs another library for it
                else verifier.verify(new Received((String) vector.get("jws"), (String) vector.get("typ"),
                        new Base64URL((String) vector.get("body")).decode(), (String) vector.get("audience"),
                        vector.get("cty"), (Map<String, Object>) vector.get("bound"), vector.get("from"), algorithms));
            } catch (Refused refused) {
                said = String.valueOf(refused.step);
            }
            System.out.println(said + "\t" + vector.get("name"));
        }
    }
}
