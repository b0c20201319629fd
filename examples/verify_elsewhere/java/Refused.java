/** Names the step that refused. */
final class Refused extends Exception {
    private static final long serialVersionUID = 1;
    final int step;

    Refused(int step, Exception why) {
        super("step " + step, why);
        this.step = step;
    }
}
